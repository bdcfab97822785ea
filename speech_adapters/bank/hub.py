"""Adapters to a hub: an adapter with its head, its card and its figures as one commit.

What comes back from there is read by :mod:`speech_adapters.saving.hub`.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import replace

from speech_adapters.bank.bank import files_of, parts_in, shared_files
from speech_adapters.errors import ConfigError, InputError
from speech_adapters.files import new_folder
from speech_adapters.reports.card import REPOSITORY, CardOptions, card, eval_results
from speech_adapters.saving.hub import COMMIT, explained, fetch_commit, resolve


def push(
    place: str | os.PathLike[str],
    repository: str,
    options: CardOptions | None = None,
    *,
    message: str = "Adapter",
    private: bool = False,
) -> str:
    """Have an adapter, its head and its card in a repository on the hub, as one commit; returns the commit.

    The repository is made where it is missing. A card that lies beside the adapter goes along as it is, with the
    address filled in; where there is none, one is written from what the files say. With ``options.dataset``
    ``.eval_results`` hold the figures.

    Args:
        place: folder of an adapter or of a run, or ``bank:NAME@TAG``.
        repository: ``user/name``.
        private: whether a new repository is.

    Raises:
        CheckpointError: a damaged part. ConfigError: a name that cannot be, no login, or no way to reach the hub.
    """
    options = replace(options or CardOptions(), repository=repository)
    parts = parts_in(place, None)
    if "adapter" not in parts:
        raise ConfigError(f"{place}: there is no adapter to push.")
    files = files_of(parts)
    own = files.get("README.md")
    text = card(parts["adapter"], options) if own is None else own.decode("utf-8").replace(REPOSITORY, repository)
    files["README.md"] = text.encode()
    for shared in shared_files(parts):
        files |= shared
    files |= {name: content.encode() for name, content in eval_results(parts["adapter"], options).items()}
    return _commit(repository, files, message, private)


def _commit(repository: str, files: dict[str, bytes], message: str, private: bool) -> str:
    from huggingface_hub import CommitOperationAdd, HfApi

    with explained(repository, None):
        api = HfApi()
        api.create_repo(repository, private=private, exist_ok=True)
        operations = [CommitOperationAdd(name, content) for name, content in sorted(files.items())]
        done = api.create_commit(repository, operations, commit_message=message)
    if done.oid is None:
        raise InputError(f"{repository}: the hub named no commit; look at what it holds.")
    return done.oid


def pull(reference: str, folder: str | os.PathLike[str]) -> str:
    """Copy the files of ``user/repo``, ``user/repo@branch`` or ``user/repo@<commit>`` to a new folder.

    Returns: the full commit, for ``load_adapter("user/repo@<commit>")``.

    Raises:
        ConfigError: a folder that is taken, no such repository or commit, or no way to reach the hub.
        CheckpointError: a repository with pickles or code, or a file that is not the commit's.
    """
    repository, _, revision = reference.partition("@")
    commit = revision if COMMIT.fullmatch(revision) else resolve(repository, revision or None)
    with new_folder(folder) as temporary:
        shutil.copytree(fetch_commit(repository, commit), temporary, dirs_exist_ok=True)
    return commit
