"""Every bad input of ``tests/cases`` through every door that it comes in by: one error, which says what to do."""

from __future__ import annotations

import contextlib
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cases.audio import BAD_AUDIO, encoded
from cases.configurations import BAD_CONFIGURATIONS
from cases.manifests import BAD_MANIFESTS
from cases.tables import (
    BAD_EMBEDDINGS,
    BAD_ENROLMENTS,
    BAD_PREDICTIONS,
    BAD_SCORES,
    BAD_TRIALS,
    GOOD_TRIALS,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from scripts import load_script

from speech_adapters.cli import main
from speech_adapters.config import load_config, parse_cli
from speech_adapters.data.audio import audio_info, read_audio
from speech_adapters.data.batches import SpeechDataset
from speech_adapters.data.embeddings import Embeddings
from speech_adapters.data.manifest import Manifest, Utterance
from speech_adapters.data.predictions import read_predictions
from speech_adapters.data.score_files import read_scores
from speech_adapters.data.trials import read_enrolment, read_trials
from speech_adapters.errors import InputError
from speech_adapters.heads import CTCHead
from speech_adapters.model import SpeechAdapterModel
from speech_adapters.text import NORMALIZERS, normalize


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPEECH_ADAPTERS_CACHE", str(tmp_path / "cache"))


def refused(message: str, *doors: Callable[[], Any]) -> None:
    """Each door raises an InputError that has the message and no more than a screen of text."""
    for door in doors:
        with pytest.raises(InputError, match=message) as caught:
            door()
        assert len(str(caught.value)) < 7_000


def exits(capsys: pytest.CaptureFixture[str], message: str, *arguments: str | Path) -> None:
    """The command line ends with code 2 and the message, without a traceback."""
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert re.search(message, error) and "Traceback" not in error, error


@pytest.fixture(scope="module")
def ctc_head(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CTC head on the smallest packaged encoder."""
    model = SpeechAdapterModel.from_pretrained("tiny-wavlm")
    model.add_head("asr", CTCHead())
    return model.save_head("asr", tmp_path_factory.mktemp("head"))


@pytest.mark.parametrize("name", BAD_AUDIO)
def test_bad_audio(tmp_path: Path, capfd: pytest.CaptureFixture[str], ctc_head: Path, name: str):
    made, suffix, message = BAD_AUDIO[name]
    path = tmp_path / f"bad{suffix}"
    path.write_bytes(made() if callable(made) else made)
    try:  # what the header promises, as a manifest's maker would take it
        seconds = audio_info(path).duration
    except InputError:
        seconds = 0.5
    manifest = Manifest([Utterance("bad", path, seconds)], "bad.jsonl")
    refused(message, lambda: read_audio(path))
    assert capfd.readouterr() == ("", ""), "the decoders keep quiet"
    refused(f"^bad.jsonl: utterance 'bad': .*({message})", manifest.check_audio)
    refused(message, lambda: SpeechDataset(manifest)[0])
    manifest.write(tmp_path / "bad.jsonl")
    exits(capfd, message, "check", tmp_path / "bad.jsonl")
    said = "2 channels.*--channel" if name == "stereo" else message
    exits(capfd, said, "transcribe", f"--head={ctc_head}", path)


@pytest.mark.parametrize("name", BAD_MANIFESTS)
def test_bad_manifests(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str):
    content, message = BAD_MANIFESTS[name]
    path = tmp_path / "bad.jsonl"
    path.write_bytes(content)
    refused(message, lambda: Manifest.read(path))
    exits(capsys, message, "check", path)


@pytest.mark.parametrize("name", BAD_TRIALS)
def test_bad_trials(tmp_path: Path, name: str):
    content, message = BAD_TRIALS[name]
    (tmp_path / "trials.txt").write_bytes(content)
    refused(message, lambda: read_trials(tmp_path / "trials.txt"))


@pytest.mark.parametrize("name", BAD_ENROLMENTS)
def test_bad_enrolment_maps(tmp_path: Path, name: str):
    content, message = BAD_ENROLMENTS[name]
    (tmp_path / "enrolment.txt").write_bytes(content)
    refused(message, lambda: read_enrolment(tmp_path / "enrolment.txt"))


@pytest.mark.parametrize("name", BAD_SCORES)
def test_bad_scores(tmp_path: Path, name: str):
    content, suffix, message = BAD_SCORES[name]
    (tmp_path / "trials.txt").write_bytes(GOOD_TRIALS)
    path = tmp_path / f"scores{suffix}"
    path.write_bytes(content)
    refused(message, lambda: read_scores(path, read_trials(tmp_path / "trials.txt")))


@pytest.mark.parametrize("name", BAD_PREDICTIONS)
def test_bad_predictions(tmp_path: Path, name: str):
    content, suffix, message = BAD_PREDICTIONS[name]
    path = tmp_path / f"predictions{suffix}"
    path.write_bytes(content)
    refused(message, lambda: read_predictions(path, n=1))


@pytest.mark.parametrize("name", BAD_EMBEDDINGS)
def test_bad_embeddings(tmp_path: Path, name: str):
    content, suffix, message = BAD_EMBEDDINGS[name]
    path = tmp_path / f"embeddings{suffix}"
    path.write_bytes(content)
    refused(message, lambda: Embeddings.load(path))


@pytest.fixture(scope="module")
def recipe() -> Any:
    return load_script("recipes/evaluate_asr.py")


@pytest.mark.parametrize("name", BAD_CONFIGURATIONS)
def test_bad_configurations(tmp_path: Path, recipe: Any, name: str):
    content, message = BAD_CONFIGURATIONS[name]
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    refused(
        message,
        lambda: load_config(recipe.Config, path),
        lambda: parse_cli(recipe.Config, ["--config", str(path)]),
    )


_ANY = st.binary(max_size=200) | st.text(st.characters(exclude_categories=("Cs",)), max_size=200).map(str.encode)


@settings(deadline=None, max_examples=200)
@given(_ANY)
def test_any_bytes_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, recipe: Any, content: bytes):
    path = tmp_path_factory.getbasetemp() / "any"
    path.write_bytes(content)
    trials = tmp_path_factory.getbasetemp() / "trials.txt"
    trials.write_bytes(GOOD_TRIALS)
    doors: tuple[Callable[[Path], Any], ...] = (
        Manifest.read, read_trials, read_enrolment, read_predictions, read_audio,
        lambda path: read_scores(path, read_trials(trials)), lambda path: load_config(recipe.Config, path),
    )  # fmt: skip
    for door in doors:
        with contextlib.suppress(InputError):
            door(path)


@settings(deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.text("abc/.é", min_size=1), st.text("abc/.é", min_size=1)), min_size=2))
def test_any_trial_list_reads_back(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[bool, str, str]]):
    rows = [(True, "e", "t"), (False, "f", "t"), *rows]
    path = tmp_path_factory.getbasetemp() / "any.txt"
    path.write_text("".join(f"{int(label)} {enrol} {test}\n" for label, enrol, test in rows), encoding="utf-8")
    trials = read_trials(path, allow_repeats=True)
    assert [(bool(t.label), t.enrol, t.test) for t in trials] == rows


@given(st.text())
def test_normalisers_take_any_text_and_come_to_rest(text: str):
    for name in NORMALIZERS:
        once = normalize(text, name)
        assert normalize(once, name) == once


def test_the_catalogue_is_large():
    tables = (BAD_AUDIO, BAD_MANIFESTS, BAD_TRIALS, BAD_ENROLMENTS, BAD_SCORES, BAD_PREDICTIONS, BAD_EMBEDDINGS)
    assert sum(map(len, tables)) + len(BAD_CONFIGURATIONS) >= 150


CONTAINERS = [
    ("WAV", "PCM_16"), ("WAV", "FLOAT"), ("WAV", "ULAW"), ("WAV", "GSM610"), ("WAV", "IMA_ADPCM"), ("WAVEX", "PCM_24"),
    ("RF64", "PCM_16"), ("W64", "PCM_16"), ("FLAC", "PCM_16"), ("FLAC", "PCM_24"), ("OGG", "VORBIS"), ("OGG", "OPUS"),
    ("MP3", "MPEG_LAYER_III"), ("AIFF", "PCM_16"), ("AIFF", "FLOAT"), ("AU", "PCM_16"), ("AU", "ULAW"),
    ("AU", "G721_32"), ("CAF", "PCM_16"), ("CAF", "ALAC_16"), ("NIST", "PCM_16"), ("VOC", "PCM_16"),
    ("SVX", "PCM_16"), ("IRCAM", "PCM_16"), ("PAF", "PCM_16"), ("PVF", "PCM_16"), ("MAT4", "PCM_16"),
    ("MAT5", "FLOAT"), ("AVR", "PCM_16"), ("HTK", "PCM_16"), ("MPC2K", "PCM_16"), ("WVE", "ALAW"), ("XI", "DPCM_16"),
]  # fmt: skip


@pytest.mark.parametrize("container", CONTAINERS, ids="-".join)
def test_no_damage_of_a_container_escapes(tmp_path: Path, capfd: pytest.CaptureFixture[str], container: tuple):
    """Ten damaged files each: read, or refused by an AudioError; the same by the header alone and by the check."""
    rng = random.Random("-".join(container))
    good = encoded(*container, rate=8_000 if container[0] == "WVE" else 16_000)
    path = tmp_path / f"bad.{container[0].lower()}"
    for _ in range(10):
        content = bytearray(good)
        for _ in range(rng.randint(1, 8)):
            content[rng.randrange(rng.choice((64, len(content))))] = rng.randrange(256)
        if rng.random() < 0.4:
            content = content[: rng.randrange(len(content))]
        path.write_bytes(content)
        manifest = Manifest([Utterance("bad", path, 0.5)])
        for door in (
            lambda: audio_info(path),
            lambda: read_audio(path, channel="mix"),
            manifest.check_audio,
            lambda manifest=manifest: SpeechDataset(manifest)[0],
            lambda manifest=manifest: manifest.sha256,
        ):
            with contextlib.suppress(InputError):
                door()
    assert capfd.readouterr() == ("", ""), "the decoders keep quiet"
