"""The demo corpus on paper: who says which sentence, in which style, over which channel. No sound is made here."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from speech_adapters.corpora.espeak import Spoken

VERSION = 1
"""Raise it when anything here changes the audio: caches are then built anew."""

SPLITS = ("train", "dev", "test")

VARIANTS = {
    "train": "m1 m3 m4 m6 m7 f1 f3 f4 f5 Alex Alicia Annie Denis Gene Lee Michael Mike adam david edward john linda "
    "michel robert",
    "dev": "m2 belinda max shelby",
    "test": "m5 f2 benjamin aunty norbert travis",
}
"""eSpeak's voice variants. Left out: whispers, robots, and those that clip or mumble."""

FEMALE = frozenset("f1 f2 f3 f4 f5 Alicia Annie aunty belinda linda shelby".split())
ACCENTS = ("en", "en-us-nyc", "en-gb-x-rp", "en-gb-scotland", "en-029")
"""Each variant speaks as two speakers: American English (``en-us``) and one of these in turn."""

UTTERANCES = {"train": 36, "dev": 24, "test": 24}
"""Utterances a speaker: multiples of 12, so that styles and domains are balanced within every speaker."""

DOMAINS = {"studio": ("",), "telephone": ("mu-law", "gsm"), "noisy": ("pink", "babble")}
"""Domain -> its channels: codecs of :func:`~speech_adapters.data.augmentation.telephone`, kinds of noise."""


@dataclass(frozen=True)
class Style:
    """What a style changes: the speaker's pitch (added), range and rate (a factor); level is the RMS in dBFS."""

    pitch: int
    range: int
    rate: float
    level: float


STYLES = {
    "neutral": Style(pitch=0, range=50, rate=1.0, level=-28),
    "happy": Style(pitch=20, range=85, rate=1.08, level=-26),
    "angry": Style(pitch=6, range=70, rate=1.22, level=-23),
    "sad": Style(pitch=-16, range=18, rate=0.82, level=-31),
}
"""The directions (not the amounts) are those of acted emotions, as Scherer, "Vocal communication of emotion" (Speech
Communication 40, 2003) sums up: joy and anger raise level, pitch and tempo; sadness lowers them and flattens pitch."""


@dataclass(frozen=True)
class Planned:
    """One utterance before it is spoken."""

    split: str
    id: str
    speaker: str
    gender: str
    emotion: str
    domain: str
    channel: str
    level: float
    seed: tuple[int, ...]
    spoken: Spoken

    @property
    def path(self) -> str:
        """Of its audio, relative to the corpus."""
        return f"audio/{self.split}/{self.id}.flac"


def plan_demo() -> list[Planned]:
    """Who says what, how and over which channel."""
    return [planned for index, split in enumerate(SPLITS) for planned in _plan_split(index, split)]


@cache
def read_sentences() -> dict[str, tuple[str, ...]]:
    """Split -> its sentences, as written (with punctuation, which eSpeak needs for its melody)."""
    sentences: dict[str, list[str]] = {}
    for line in (Path(__file__).parent / "demo_sentences.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            current = sentences.setdefault(line.strip("[]"), [])
        elif line and not line.startswith("#"):
            current.append(line)
    return {split: tuple(lines) for split, lines in sentences.items()}


def transcript(sentence: str) -> str:
    """A sentence as its reference text: upper case A-Z, apostrophe and single spaces, as in LibriSpeech."""
    return " ".join(re.sub(r"[^A-Z' ]", " ", sentence.upper()).split())


def _plan_split(split_index: int, split: str) -> list[Planned]:
    count = UTTERANCES[split]
    sentences = read_sentences()[split]
    order = np.random.default_rng([VERSION, split_index]).permutation(len(sentences))
    speakers = [
        (variant, accent)
        for index, variant in enumerate(VARIANTS[split].split())
        for accent in ("en-us", ACCENTS[index % len(ACCENTS)])
    ]
    plan = []
    for s, (variant, accent) in enumerate(speakers):
        rng = np.random.default_rng([VERSION, split_index, s])
        own_pitch, own_rate = 50 + int(rng.integers(-8, 9)), int(rng.integers(130, 156))
        cells = [(emotion, domain) for emotion in STYLES for domain in DOMAINS] * (count // 12)
        for k, cell in enumerate(rng.permutation(len(cells))):
            emotion, domain = cells[cell]
            style = STYLES[emotion]
            sentence = sentences[order[(s * count + k) % len(sentences)]]
            spoken = Spoken(
                sentence,
                f"{accent}+{variant}",
                rate=round(own_rate * style.rate * rng.uniform(0.96, 1.04)),
                pitch=own_pitch + style.pitch + int(rng.integers(-3, 4)),
                range=style.range + int(rng.integers(-5, 6)),
            )
            speaker = f"{variant}-{accent}".lower()
            plan.append(
                Planned(
                    split,
                    f"{speaker}-{k:02d}",
                    speaker,
                    "F" if variant in FEMALE else "M",
                    emotion,
                    domain,
                    channel=DOMAINS[domain][int(rng.integers(len(DOMAINS[domain])))],
                    level=style.level + rng.uniform(-1.5, 1.5),
                    seed=(VERSION, split_index, s, k),
                    spoken=spoken,
                )
            )
    return plan
