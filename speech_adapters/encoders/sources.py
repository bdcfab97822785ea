"""Where an encoder comes from: a packaged one, a local folder, the hub."""

from __future__ import annotations

import difflib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from speech_adapters.encoders.hub import fetch, is_hub_id
from speech_adapters.encoders.json_files import is_there
from speech_adapters.encoders.others import others_in, remedy_of
from speech_adapters.encoders.shipped import PACKAGED, packaged_encoders
from speech_adapters.errors import ConfigError


def checkpoint_file(name_or_path: str | Path, file: str) -> Path | None:
    """A file of a checkpoint, such as ``vocab.json``, or None where it has none; errors as of :func:`find_folder`."""
    source = Source.read(name_or_path)
    path = find_folder(source.name, source.revision, source.target_lang) / file
    return path if is_there(path) else None


@dataclass(frozen=True)
class Source:
    """What an encoder is called: its name, the revision on the hub, the language of an MMS checkpoint."""

    name: str
    revision: str | None = None
    target_lang: str | None = None

    @classmethod
    def read(cls, name_or_path: str | Path, revision: str | None = None, target_lang: str | None = None) -> Source:
        """Take ``NAME[@REVISION][:LANGUAGE]`` apart, as recipes and command lines write it; a folder of just this name
        is meant where there is one, and of a Path also where a packaged encoder has this name.

        Args:
            revision, target_lang: said beside it.

        Raises:
            ConfigError: said twice, and not the same.
        """
        text = str(name_or_path)
        if isinstance(name_or_path, Path) and text in packaged_encoders():
            text = os.path.join(os.curdir, text)
        match = None if os.path.isdir(os.path.expanduser(text)) else _NAME.fullmatch(text)
        if match is None:
            return cls(text, revision, target_lang)
        for key, beside in (("revision", revision), ("target_lang", target_lang)):
            if None not in (beside, match[key]) and beside != match[key]:
                raise ConfigError(f"{text}: says {match[key]!r}, and {key}={beside!r} was given beside it; drop one.")
        return cls(match["name"], revision or match["revision"], target_lang or match["target_lang"])


_NAME = re.compile(r"(?P<name>[^@:]+)(@(?P<revision>[\w./-]+))?(:(?P<target_lang>[\w-]+))?")


def is_local(name: str) -> bool:
    """Whether an encoder of this name is in the package or a folder, so that it has no revisions."""
    return name in packaged_encoders() or os.path.isdir(os.path.expanduser(name))


def find_folder(name: str, revision: str | None = None, target_lang: str | None = None) -> Path:
    """The folder of an encoder, downloaded where need be.

    Args:
        name, revision, target_lang: as of :func:`~speech_adapters.encoders.loading.load_encoder`.

    Raises:
        ConfigError: no such name or folder, or a hub id that is neither cached nor reachable.
        CheckpointError: a repository without what it must have.
    """
    given = os.path.expanduser(name)
    folder = Path(given)
    if revision is not None and is_local(name):
        raise ConfigError(
            f"{name}@{revision}: no such folder. There is {name!r}, but revisions are those of a repository on the "
            "hub: leave it out."
        )
    if name in packaged_encoders():
        return PACKAGED / name
    if os.path.isdir(given):  # unlike Path's, false of what no file can be called, and of no name at all
        if not is_there(folder / "config.json"):
            part = next((kind for kind in ("adapter", "head", "fusion") if (folder / f"{kind}.json").is_file()), None)
            if part is not None:
                raise ConfigError(
                    f"{name}: a saved {part}, not an encoder; load its base, then call load_{part}(folder)."
                )
            raise ConfigError(f"{name}: no config.json in this folder; {_instead_of(folder)}.")
        return folder
    if os.path.isfile(folder):
        remedy = None if (folder.parent / "config.json").is_file() else remedy_of(folder)
        raise ConfigError(f"{name}: a file; {remedy or 'give the folder that it lies in'}.")
    if not is_hub_id(name):
        near = difflib.get_close_matches(name, packaged_encoders(), n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ConfigError(
            f"unknown encoder {name!r}: no such folder.{hint} Packaged: {', '.join(packaged_encoders()) or 'none'}; "
            "otherwise give a local folder or a hub id such as microsoft/wavlm-base-plus."
        )
    return fetch(name, revision, target_lang)


def _instead_of(folder: Path) -> str:
    """What to give in place of a folder that is no checkpoint."""
    if (folder / "snapshots").is_dir():
        return "it is a repository in the hub's cache: give its id, or one of the folders in snapshots/"
    if inside := [path.parent for path in folder.glob("*/config.json")]:
        return f"give one of the folders in it that have one, such as {max(inside, key=os.path.getmtime)}"
    return others_in(folder) or "download the checkpoint whole, config.json with it, in Hugging Face format"
