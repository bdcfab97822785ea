"""The demo corpus: 68 synthetic voices, three domains, four styles, about 80 minutes, made here in about a minute.

It exists so that every recipe runs offline with no data at hand, and can be judged: labels for recognition (``text``),
emotion (``emotion``) and speaker verification (``speaker``, trial lists); no voice, no accent-and-voice pair and no
sentence is in two splits. eSpeak NG speaks it (see :mod:`speech_adapters.corpora.espeak`), so results on it say that
the machinery works, never how well a method does on people. Layout, with `audio_filepath` relative to the manifests::

    demo-v1/
      demo_train.jsonl  demo_dev.jsonl  demo_test.jsonl
      demo_dev_trials.txt  demo_test_trials.txt        "1 enrol test", paths relative to audio/
      audio/train/m1-en-us-00.flac ...                 16 kHz, 16 bit
      complete.json                                    written last: what was built, and the hash of all audio

The same samples come out each time: the plan and all noise come from seeds.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import combinations
from pathlib import Path

import numpy as np
import torch

from speech_adapters.corpora.demo_plan import SPLITS, VERSION, Planned, plan_demo, read_sentences, transcript
from speech_adapters.corpora.espeak import EspeakError, Spoken, synthesize
from speech_adapters.data.audio import SAMPLE_RATE, resample, write_audio
from speech_adapters.data.audio_files import cache_folder
from speech_adapters.data.augmentation import add_noise, telephone
from speech_adapters.data.manifest import Manifest, Utterance
from speech_adapters.errors import InputError
from speech_adapters.files import new_folder
from speech_adapters.locks import locked

SNR_DB = (5.0, 15.0)
"""Lowest and highest signal-to-noise ratio of the noisy domain."""

MARGIN = 0.1
"""Seconds of silence on both sides; eSpeak leaves none."""

WHEEL = "espeakng-loader"
"""Package that brings eSpeak NG."""

BABBLERS = ("Reed", "miguel", "marcelo", "steph", "quincy", "victor")
"""eSpeak's variants that only ever speak in the background."""


@dataclass(frozen=True)
class DemoCorpus:
    """Where the parts of the built corpus lie."""

    root: Path

    @property
    def train(self) -> Path:
        """Manifest of the 48 train speakers, about an hour."""
        return self.manifest("train")

    @property
    def dev(self) -> Path:
        """Manifest of the 8 dev speakers."""
        return self.manifest("dev")

    @property
    def test(self) -> Path:
        """Manifest of the 12 test speakers."""
        return self.manifest("test")

    @property
    def audio(self) -> Path:
        """The folder at which the trial lists' paths start."""
        return self.root / "audio"

    @property
    def marker(self) -> Path:
        """Written last; says what was built."""
        return self.root / "complete.json"

    def manifest(self, split: str) -> Path:
        """Manifest of one split."""
        return self.root / f"demo_{split}.jsonl"

    def trials(self, split: str) -> Path:
        """Verification trials of ``"dev"`` or ``"test"``: 25 target and 75 same-gender non-target ones a speaker."""
        return self.root / f"demo_{split}_trials.txt"


def demo_root() -> Path:
    """Where the corpus is cached: in ``$SPEECH_ADAPTERS_CACHE``, by default ``~/.cache/speech_adapters``."""
    return cache_folder() / f"demo-v{VERSION}"


def prepare_demo(root: str | os.PathLike[str] | None = None) -> DemoCorpus:
    """Build the demo corpus in ``root`` (by default :func:`demo_root`), or return at once when it is there and whole.

    Raises:
        InputError: eSpeak cannot run here, ``root`` cannot be written, or it holds other files.
    """
    corpus = DemoCorpus(Path(root).absolute() if root is not None else demo_root())
    if _is_complete(corpus):
        return corpus
    try:
        with locked(corpus.root):
            if not _is_complete(corpus):  # by another process meanwhile
                _build_anew(corpus)
    except InputError as error:
        if not isinstance(refused := error.__cause__, OSError):
            raise
        raise InputError(
            f"{corpus.root}: cannot be written ({refused.strerror or refused}); set SPEECH_ADAPTERS_CACHE to a folder "
            "of yours, with room in it"
        ) from error
    return corpus


def _build_anew(corpus: DemoCorpus) -> None:
    if corpus.root.is_dir() and any(corpus.root.iterdir()) and not corpus.marker.exists():
        raise InputError(f"{corpus.root}: holds files that are not the demo corpus; name an empty or a new folder")
    with new_folder(corpus.root, replace=True) as building:
        build_demo(building)


def build_demo(root: Path, limit: int | None = None) -> None:
    """Build into the empty folder ``root``: everything, or the first ``limit`` utterances of the plan.

    Raises:
        InputError: eSpeak cannot run here.
    """
    from tqdm import tqdm

    corpus = DemoCorpus(root)
    plan = plan_demo()[:limit]
    sentences = read_sentences()["train"]
    background = [
        Spoken(" ".join(sentences[i :: len(sentences) // 6]), f"en-us+{voice}") for i, voice in enumerate(BABBLERS)
    ]
    for split in {planned.split for planned in plan}:
        (corpus.audio / split).mkdir(parents=True)
    utterances: dict[str, list[Utterance]] = {}
    digest = hashlib.sha256()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums differ with the number of threads, and threads slow such short waveforms down
    try:
        with closing(synthesize([*background, *(planned.spoken for planned in plan)])) as voices:
            babble = _babble([_to_waveform(*next(voices)) for _ in background])
            for planned in tqdm(plan, desc="speaking the demo corpus", unit="utt", mininterval=1):
                waveform = _render(planned, _to_waveform(*next(voices)), babble)
                path = root / planned.path
                write_audio(path, waveform)
                digest.update(path.read_bytes())
                utterances.setdefault(planned.split, []).append(_utterance(planned, path, len(waveform)))
    except EspeakError as error:
        raise InputError(f"demo corpus: {error}; install it again: pip install --force-reinstall {WHEEL}") from error
    finally:
        torch.set_num_threads(threads)
    for split, lines in utterances.items():
        lines.sort(key=lambda utterance: utterance.id)
        Manifest(lines).write(corpus.manifest(split))
        if split != "train":
            corpus.trials(split).write_text(_trials(lines, corpus.audio), encoding="utf-8", newline="\n")
    marker = {"fingerprint": _fingerprint(), "utterances": len(plan), "audio_sha256": digest.hexdigest()}
    corpus.marker.write_text(json.dumps(marker, indent=2) + "\n", encoding="utf-8")


def _to_waveform(rate: int, samples: np.ndarray) -> torch.Tensor:
    waveform = torch.from_numpy(samples.astype(np.float32) / 32768)
    return torch.nn.functional.pad(resample(waveform, rate, SAMPLE_RATE), (round(MARGIN * SAMPLE_RATE),) * 2)


def _rms(waveform: torch.Tensor) -> float:
    return float(waveform.double().square().mean().sqrt())


def _babble(voices: Sequence[torch.Tensor]) -> torch.Tensor:
    """All background voices at once, equally loud, as long as the shortest."""
    length = min(map(len, voices))
    return sum((voice[:length] / _rms(voice[:length]) for voice in voices), torch.zeros(length))


def _render(planned: Planned, waveform: torch.Tensor, babble: torch.Tensor) -> torch.Tensor:
    """Set the level, then add the domain's noise or pass the domain's channel."""
    gain = min(10 ** (planned.level / 20) / _rms(waveform), 0.95 / float(waveform.abs().max()))
    waveform = waveform * gain
    rng = np.random.default_rng(planned.seed)
    if planned.domain == "telephone":
        return telephone(waveform, planned.channel)
    if planned.domain == "noisy":
        noise = babble if planned.channel == "babble" else _pink(len(waveform), rng)
        noisy = add_noise(waveform, noise, rng.uniform(*SNR_DB), rng)
        return noisy / max(float(noisy.abs().max()), 1.0)
    return waveform


def _pink(length: int, rng: np.random.Generator) -> torch.Tensor:
    """Noise that falls by 3 dB an octave: J. O. Smith, "Spectral Audio Signal Processing" (2011), 1/f noise."""
    from scipy.signal import lfilter

    b = (0.049922035, -0.095993537, 0.050612699, -0.004408786)
    a = (1.0, -2.494956002, 2.017265875, -0.522189400)
    return torch.from_numpy(lfilter(b, a, rng.standard_normal(length)).astype(np.float32))


def _utterance(planned: Planned, path: Path, samples: int) -> Utterance:
    return Utterance(
        id=planned.id,
        audio_filepath=path.absolute(),
        duration=round(samples / SAMPLE_RATE, 4),
        text=transcript(planned.spoken.text),
        speaker=planned.speaker,
        emotion=planned.emotion,
        domain=planned.domain,
        lang="en",
        extra={"gender": planned.gender} | ({"channel": planned.channel} if planned.channel else {}),
    )


def _trials(utterances: Sequence[Utterance], audio: Path, target: int = 25, nontarget: int = 75) -> str:
    """Trials: ``target`` pairs of each speaker, ``nontarget`` pairs of the same gender for each speaker on average."""
    rng = np.random.default_rng(VERSION)
    speakers = sorted({utterance.speaker for utterance in utterances if utterance.speaker is not None})
    pools: dict[str, list[tuple[Utterance, Utterance]]] = {name: [] for name in (*speakers, "others")}
    for enrol, test in combinations(utterances, 2):
        if enrol.speaker is not None and enrol.speaker == test.speaker:
            pools[enrol.speaker].append((enrol, test))
        elif enrol.extra["gender"] == test.extra["gender"]:
            pools["others"].append((enrol, test))
    lines = []
    for name, pool in pools.items():
        label, count = (0, nontarget * len(speakers)) if name == "others" else (1, target)
        for index in sorted(rng.permutation(len(pool))[:count]):
            enrol, test = (utterance.audio_filepath.relative_to(audio).as_posix() for utterance in pool[index])
            lines.append(f"{label} {enrol} {test}\n")
    return "".join(lines)


def _fingerprint() -> str:
    """What decides over the audio, as far as code can know: the plan, its version, eSpeak's version."""
    try:
        content = repr((VERSION, version(WHEEL), plan_demo()))
    except PackageNotFoundError as error:
        raise InputError(f"demo corpus: eSpeak NG is not installed; pip install {WHEEL}") from error
    return hashlib.sha256(content.encode()).hexdigest()


def _is_complete(corpus: DemoCorpus) -> bool:
    try:
        if json.loads(corpus.marker.read_text(encoding="utf-8"))["fingerprint"] != _fingerprint():
            return False
        present = {entry.name for split in SPLITS for entry in os.scandir(corpus.audio / split)}
    except (OSError, KeyError, json.JSONDecodeError):
        return False
    files = [*map(corpus.manifest, SPLITS), corpus.trials("dev"), corpus.trials("test")]
    return all(file.exists() for file in files) and all(f"{planned.id}.flac" in present for planned in plan_demo())


if __name__ == "__main__":
    try:
        print(prepare_demo().root)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
