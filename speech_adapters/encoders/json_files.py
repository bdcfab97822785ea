"""The files of a checkpoint: whether they are there, and what those in JSON hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from speech_adapters import files
from speech_adapters.errors import CheckpointError, InputError


def is_there(path: Path) -> bool:
    """Whether a file is there. Raises CheckpointError for a link to what is not, as a tidied cache leaves them."""
    if path.is_symlink() and not path.exists():
        raise CheckpointError(f"{path}: a link to a file that does not exist; download the folder again.")
    return path.is_file()


def check_start(path: Path) -> None:
    """Name what often lies in the place of a file: pointers, web pages, nothing.

    Raises:
        CheckpointError: one of these, or a file that cannot be read.
    """
    try:
        with path.open("rb") as file:
            start = file.read(64).lstrip().lower()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error}); download it again.") from error
    if start.startswith(b"version https://git-lfs"):
        fault = "is a Git LFS pointer, not the file itself: run git lfs pull in its folder, or"
    elif start.startswith((b"<!doctype", b"<html", b"<?xml")):
        fault = "is a web page, not the file itself:"
    elif not start:
        fault = "is empty:"
    else:
        return
    raise CheckpointError(f"{path}: {fault} download it again.")


def read_json(path: Path) -> dict[str, Any]:
    """The keys and values in a file. Raises CheckpointError where there are none."""
    check_start(path)
    try:
        content = files.read_json(path)
    except InputError as error:
        raise CheckpointError(f"{error}; download the folder again.") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: not a JSON object; download the folder again.")
    return content
