"""What the preparation of every corpus shares: find its folder, measure its audio, write its manifest."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from speech_adapters.data.audio import AudioInfo, audio_info, read_audio, write_audio
from speech_adapters.data.manifest import Manifest, Utterance
from speech_adapters.errors import AudioError, InputError, ManifestError


def find_corpus(root: str | os.PathLike[str], pattern: str, name: str, remedy: str) -> Path:
    """The folder in which the glob ``pattern`` matches: ``root`` itself or one of its folders.

    Raises:
        InputError: neither; names the expected layout and says how to get the corpus.
    """
    root = Path(root)
    for folder in (root, *sorted(path for path in root.glob("*") if path.is_dir())):
        if next(folder.glob(pattern), None) is not None:
            return folder
    raise InputError(f"{root}: no {name} there (expected {pattern}); {remedy}")


def measure(path: Path, where: str | os.PathLike[str]) -> AudioInfo:
    """The audio file's header; ``where`` (a file and line that name it) opens the error.

    Raises:
        ManifestError: a missing, empty or broken file, or one that git LFS has not fetched.
    """
    try:
        return audio_info(path)
    except AudioError as error:
        if path.is_file() and path.read_bytes()[:24] == b"version https://git-lfs.":
            raise ManifestError(f"{where}: {path} is a git LFS pointer; fetch the audio with: git lfs pull") from error
        raise ManifestError(f"{where}: {error}") from error


def mono(path: Path, info: AudioInfo, folder: Path) -> Path:
    """The file itself, or, where it has several channels, their mean as ``folder/<stem>.flac`` at its own rate.

    For corpora of single speakers in which a few files are stereo by accident.
    """
    if info.channels == 1:
        return path
    copy = folder / f"{path.stem}.flac"
    if not copy.exists():
        folder.mkdir(parents=True, exist_ok=True)
        mono = read_audio(path, sample_rate=info.sample_rate, channel="mix")
        write_audio(copy, mono, info.sample_rate, loud="scale")
    return copy


def write_manifest(
    utterances: Iterable[Utterance], path: Path, require: Sequence[str], *, name: str, check_files: bool = False
) -> Manifest:
    """Write the utterances, read them back checked, and return that manifest; shows progress.

    Raises:
        InputError: there are none. ManifestError: a missing key or a repeated id.
    """
    from tqdm import tqdm

    manifest = Manifest(tqdm(utterances, desc=f"reading {name}", unit="utt", mininterval=1, delay=1), name)
    if not len(manifest):
        raise InputError(f"{name}: no utterance in it; check the folder, or get the corpus again")
    manifest.require(*require).write(path)
    return Manifest.read(path, require, check_files=check_files)
