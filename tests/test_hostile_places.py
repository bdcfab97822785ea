"""Names, places and devices that nobody should use: a sentence each, never a traceback and never without end."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from small_models import small_model

from speech_adapters.config import run_main
from speech_adapters.data import manifest_lines
from speech_adapters.data.audio import read_audio
from speech_adapters.data.batches import SpeechDataset
from speech_adapters.data.manifest import Manifest, Utterance
from speech_adapters.encoders import load_encoder
from speech_adapters.errors import ConfigError, InputError
from speech_adapters.files import atomic, new_folder, write_text
from speech_adapters.heads import CTCHead
from speech_adapters.objectives.whisper_student import save_encoder
from speech_adapters.runs.folder import RunFolder
from speech_adapters.training.settings import TrainingConfig


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPEECH_ADAPTERS_CACHE", str(tmp_path_factory.mktemp("cache")))


NOISE = np.random.default_rng(0).uniform(-0.5, 0.5, 8_000)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere file names are Unicode")
def test_a_name_that_is_no_utf8_is_read_and_printed_as_it_is(tmp_path: Path):
    path = tmp_path / os.fsdecode(b"caf\xe9.wav")
    soundfile.write(os.fsencode(path), NOISE, 16_000, format="WAV")
    assert len(read_audio(path)) == 8_000
    script = "from speech_adapters.config import run_main\nimport sys\nrun_main(lambda: print(sys.argv[1]))"
    for encoding, expected in (("utf-8", b"caf\xe9.wav"), ("ascii", b"caf\\udce9.wav")):
        environment = {**os.environ, "PYTHONIOENCODING": encoding}
        done = subprocess.run([sys.executable, "-c", script, os.fsencode(path)], capture_output=True, env=environment)
        assert done.returncode == 0 and done.stdout.rstrip().endswith(expected), done.stderr


def test_a_line_without_end_is_no_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(manifest_lines, "LONGEST_LINE", 1000)
    (tmp_path / "archive.tar").write_bytes(bytes(100_000))
    with pytest.raises(InputError, match=r"archive.tar:1: a line of 1,000 bytes or more is too long for a manifest"):
        Manifest.read(tmp_path / "archive.tar")


def test_names_that_are_too_long_and_links_without_end(tmp_path: Path):
    long, loop = tmp_path / ("a" * 300), tmp_path / "loop"
    loop.symlink_to(loop)
    for place in (long, loop):
        with pytest.raises(InputError, match="cannot be a run folder|the run folder cannot be made"):
            RunFolder.open("asr", TrainingConfig(updates=1), place)
        with pytest.raises(InputError, match="cannot be written"):
            write_text(place / "x", "y")
        with pytest.raises(InputError, match="cannot be read|no such file"):
            small_model().load_adapter(place)
        with pytest.raises(InputError):
            small_model(method="lora").save_adapter("a", place)
        with pytest.raises(InputError, match="cannot be read"):
            Manifest.read(place)


@contextlib.contextmanager
def full_disk(room: int = 30_000) -> Iterator[None]:
    """No file takes more than so many bytes: to whoever writes it, the system says so as of a disk that is full."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.filterwarnings("ignore:.*lm_head")
def test_a_full_disk_is_named_whatever_library_writes_to_it(tmp_path: Path):
    """And what was there before is there still, whole."""
    model = small_model(method="lora")
    model.add_head("h", CTCHead(hidden_size=200))
    model.add_head("plain", CTCHead())
    older = model.save_adapter("a", tmp_path / "a"), model.save_head("h", tmp_path / "h")
    checkpoint = tmp_path / "checkpoint.pt"
    checkpoint.write_bytes(b"older")
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def save(content: object, path: Path) -> None:
        with atomic(path) as file:
            torch.save(content, file)

    ways: dict[str, Callable[[], object]] = {
        "our own": lambda: model.save_head("h", older[1]),
        "torch.save": lambda: save({"tensor": torch.zeros(100_000)}, checkpoint),
        "peft's": lambda: model.save_peft("a", tmp_path / "peft", head="plain"),
        "transformers'": lambda: model.save_folded("a", tmp_path / "stock", head="plain"),
        "an encoder's": lambda: save_encoder(model.encoder.model, tmp_path / "encoder"),
    }
    for way, write in ways.items():
        with full_disk(), pytest.raises(InputError, match=r"cannot be written \(File too large\)"):
            write()
        left = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        assert left == files, way


def test_an_error_of_the_writer_itself_is_no_full_disk(tmp_path: Path):
    with pytest.raises(RuntimeError, match="a bug"), atomic(tmp_path / "x"):
        raise RuntimeError("a bug")
    with pytest.raises(ZeroDivisionError), new_folder(tmp_path / "y"):
        1 / 0  # noqa: B018
    assert not list(tmp_path.iterdir())


def test_a_log_on_a_full_disk_is_named(tmp_path: Path):
    run = RunFolder.open("asr", TrainingConfig(updates=1), tmp_path / "run")
    with full_disk(10), pytest.raises(InputError, match=r"metrics.jsonl: cannot be written \(File too large\)"):
        run.log_metrics({"step": 1, "loss": 2.0})


def test_a_file_that_changes_between_the_check_and_the_training_is_named(tmp_path: Path):
    """Whatever it becomes, and however well its size and time are kept."""
    path = tmp_path / "a.wav"
    soundfile.write(path, NOISE, 16_000, subtype="FLOAT")
    manifest = Manifest([Utterance("a", path, 0.5)]).check_audio()
    good, times = path.read_bytes(), path.stat()
    key, nan = manifest.content_key(), np.frombuffer(good[-4:], np.float32) * np.nan
    for changed, message in (
        (good[:-4] + nan.tobytes(), "NaN or infinite"), (good[:5000], "cut short"), (b"", "empty file"),
        (None, "no such audio file"),
    ):  # fmt: skip
        path.unlink() if changed is None else path.write_bytes(changed)
        if changed is not None:
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        with pytest.raises(InputError, match=f"a.wav: .*{message}"):
            SpeechDataset(manifest)[0]
        with pytest.raises(InputError, match=message):
            manifest.check_audio()
        assert manifest.content_key() != key, "no cache of what it was is taken"


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "meta", ""])
def test_a_device_that_is_not_there(device: str):
    with pytest.raises(ConfigError, match=r"device .*choose cpu( or cuda)?\."):
        load_encoder("tiny-wavlm", device=device)


def test_system_errors_that_nobody_could_foresee_end_in_a_line(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    def fail() -> None:
        (tmp_path / ("a" * 300)).stat()

    with pytest.raises(SystemExit) as ended:
        run_main(fail)
    assert ended.value.code == 2 and "File name too long" in capsys.readouterr().err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux")
def test_a_full_disk_while_writing(tmp_path: Path):
    """What is saved over stays as it was, and nothing is left beside it."""
    model = small_model(method="lora")
    model.save_adapter("a", tmp_path / "adapter")
    before = {path.name: path.read_bytes() for path in (tmp_path / "adapter").iterdir()}
    real = io.open

    def full(path: object, mode: str = "r", *more: object, **options: object) -> object:
        return real("/dev/full" if "w" in mode and str(path).endswith(".tmp") else path, mode, *more, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(io, "open", full)
        with pytest.raises(InputError, match="cannot be written .No space left on device"):
            model.save_adapter("a", tmp_path / "adapter", note="new")
    assert {path.name: path.read_bytes() for path in (tmp_path / "adapter").iterdir()} == before


@pytest.mark.skipif(sys.platform != "linux" or os.getuid() == 0, reason="root may write anywhere")
def test_folders_of_others_end_in_a_sentence(tmp_path: Path):
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="Permission denied"):
        write_text(tmp_path / "x", "y")
