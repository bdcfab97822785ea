"""Adapters from a hub: the files of one commit, checked before anything reads them.

``user/repo@<commit>`` names exactly one state of a repository. Only descriptions (JSON), weights (safetensors) and the
card are fetched; a repository with a file that could hold a pickle is refused as a whole, since other tools would read
it. What has been fetched once is read from the cache and needs no network.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from speech_adapters.errors import CheckpointError, ConfigError, first_line

REFERENCE = re.compile(r"(?P<repository>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)@(?P<revision>[^@\s]+)")
COMMIT = re.compile("[0-9a-f]{40}")
WANTED = ("*.json", "*.safetensors", "README.md")
"""Files that are fetched."""
_PICKLES = set(".bin .pt .pth .pkl .pickle .ckpt .joblib .dill .npy .npz .h5 .keras .mar".split())
_CODE = set(".py .pyc .so .sh".split())


def fetch(reference: str) -> Path:
    """The folder of ``user/repo@<commit>`` in the hub's cache, fetched where it is not there yet.

    Raises:
        ConfigError: no full commit, no such repository or commit, or no way to reach the hub.
        CheckpointError: a repository with pickles or code, or a file that is not the commit's.
    """
    match = REFERENCE.fullmatch(reference)
    if match is None or not COMMIT.fullmatch(match["revision"]):
        raise ConfigError(
            f"{reference}: after @ comes the full commit, 40 hexadecimal digits: a branch or tag may move, and with "
            "it what is loaded. (See it with: speech-adapters pull user/repo FOLDER. Of a bank: bank:NAME@TAG.)"
        )
    return fetch_commit(match["repository"], match["revision"])


def fetch_commit(repository: str, commit: str) -> Path:
    """As :func:`fetch`."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import IncompleteSnapshotError, LocalEntryNotFoundError

    wanted = list(WANTED)
    try:  # the cache first: a machine without network must not wait for one
        folder = Path(snapshot_download(repository, revision=commit, allow_patterns=wanted, local_files_only=True))
        if not any(folder.glob("*.json")):
            raise FileNotFoundError
        _refuse(repository, (file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()))
        return folder
    except (LocalEntryNotFoundError, IncompleteSnapshotError, FileNotFoundError):
        pass
    with explained(repository, commit):
        from huggingface_hub import HfApi

        files = [
            entry for entry in HfApi().list_repo_tree(repository, recursive=True, revision=commit)
            if hasattr(entry, "blob_id")
        ]  # fmt: skip
        _refuse(repository, (file.path for file in files))
        folder = Path(snapshot_download(repository, revision=commit, allow_patterns=wanted))
    for file in files:
        place = folder / file.path
        if place.is_file() and not _is(place.read_bytes(), file):
            place.resolve().unlink()  # the next attempt must not find it in the cache
            place.unlink()
            raise CheckpointError(f"{repository}@{commit}: {file.path} is not the file of this commit; try again.")
    return folder


def resolve(repository: str, revision: str | None = None) -> str:
    """The full commit of a branch, tag or commit, by default of the main branch. Errors as :func:`fetch`."""
    from huggingface_hub import HfApi

    with explained(repository, revision):
        commit = HfApi().model_info(repository, revision=revision).sha
    if commit is None or not COMMIT.fullmatch(commit):
        raise CheckpointError(f"{repository}: the hub names no commit of {revision or 'its main branch'}.")
    return commit


@contextmanager
def explained(repository: str, revision: str | None) -> Iterator[None]:
    """Errors of the hub as messages."""
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    from speech_adapters.encoders.hub import is_reachable

    where = f"{repository}@{revision}" if revision else repository
    if constants.HF_HUB_OFFLINE or not is_reachable(constants.ENDPOINT):
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"{constants.ENDPOINT} cannot be reached"
        raise ConfigError(
            f"{where}: {why}, and what is not in the hub's cache needs it; connect, or fetch it elsewhere."
        )
    try:
        yield
    except GatedRepoError as error:
        raise ConfigError(f"{where}: its owner grants access on request; ask, and log in (hf auth login).") from error
    except RepositoryNotFoundError as error:
        raise ConfigError(
            f"{where}: no such repository on {constants.ENDPOINT}, or one that needs a login."
        ) from error
    except RevisionNotFoundError as error:
        raise ConfigError(f"{where}: the repository has no such commit, branch or tag.") from error
    except (OfflineModeIsEnabled, LocalEntryNotFoundError, HFValidationError, HfHubHTTPError, OSError) as error:
        raise ConfigError(f"{where}: the hub gave no answer that could be used ({first_line(error)}).") from error


def _refuse(repository: str, names: Iterable[str]) -> None:
    """Raise a CheckpointError where a repository holds what runs code when it is read."""
    for name in sorted(names):
        suffix = PurePosixPath(name).suffix.lower()
        if suffix in _PICKLES | _CODE:
            kind = "may hold a pickle, which runs code when it is read" if suffix in _PICKLES else "is code"
            raise CheckpointError(f"{repository}: {name} {kind}; nothing of this repository was fetched.")


def _is(content: bytes, file: object) -> bool:
    """Whether a file is the one that the commit names: by SHA-256 in large-file storage, else by git's own hash."""
    lfs = getattr(file, "lfs", None)
    if lfs is not None:
        return hashlib.sha256(content).hexdigest() == lfs.sha256
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() == file.blob_id  # type: ignore[attr-defined]
