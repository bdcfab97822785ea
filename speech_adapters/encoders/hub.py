"""Checkpoints of the Hugging Face hub, file by file: what is cached is taken as it is, what it lacks is asked for.

Of a repository only what an encoder is made of is downloaded: ``facebook/mms-1b-all`` alone has a thousand languages'
weights. All files are of one commit, that of the cached ``config.json`` where there is one, so that a cache which
holds a part completes itself and does not mix versions.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from speech_adapters.encoders.json_files import read_json
from speech_adapters.encoders.language import language_files
from speech_adapters.encoders.others import SINGLE
from speech_adapters.encoders.preprocessing import FILES as PREPROCESSING
from speech_adapters.encoders.shipped import packaged_encoders
from speech_adapters.encoders.weights import read_shards
from speech_adapters.errors import CheckpointError, ConfigError, InputError

#: Of a recogniser's symbols.
TOKENIZER = ("vocab.json", "tokenizer_config.json", "added_tokens.json", "special_tokens_map.json", "tokenizer.json")


def fetch(name: str, revision: str | None = None, target_lang: str | None = None) -> Path:
    """The folder of a hub id in the cache, with all that an encoder needs in it.

    Raises:
        ConfigError: no such repository or revision, or what the cache lacks while the hub cannot be reached.
        CheckpointError: a repository that has no weights, or not all of them, or not those of the language.
    """
    repository = Repository(name, revision)
    config = repository.find("config.json")
    if config is None:
        raise repository.lacks("config.json")
    repository.revision = config.parent.name  # the commit
    repository.find_weights()
    for file in PREPROCESSING:  # both: one that is cached may be overruled by the other
        repository.find(file)
    kinds = read_json(config).get("architectures")
    if not kinds or any(str(kind).endswith("ForCTC") for kind in kinds):
        for file in TOKENIZER:
            repository.find(file)
    if target_lang is not None and not any(repository.find(file) for file in language_files(target_lang)):
        raise repository.lacks(" or ".join(language_files(target_lang)))
    return config.parent


def is_hub_id(name: str) -> bool:
    """Whether a repository of models, which has an owner, may have this name."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return name.count("/") == 1


class Repository:
    """A repository at a revision, seen through the cache."""

    def __init__(self, name: str, revision: str | None) -> None:
        self.name, self.revision = name, revision

    def find(self, file: str, ask: bool = True) -> Path | None:
        """A file's path in the cache, downloaded where need be; None where the hub has none or is out of reach.

        Args:
            ask: the hub, when the cache does not know.
        """
        from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
        from huggingface_hub.errors import (
            EntryNotFoundError,
            GatedRepoError,
            LocalEntryNotFoundError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )

        found = try_to_load_from_cache(self.name, file, revision=self.revision)
        if isinstance(found, str):
            return Path(found)
        if found is not None or not ask or not self.online:  # the cache knows that there is none, or nobody to ask
            return None
        try:
            return Path(hf_hub_download(self.name, file, revision=self.revision))
        except GatedRepoError as error:
            raise ConfigError(
                f"{self.name}: for those who accepted its owners' terms: do so on {constants.ENDPOINT}/{self.name}, "
                "and log in (`hf auth login`)."
            ) from error
        except (RepositoryNotFoundError, RevisionNotFoundError) as error:
            raise ConfigError(
                f"{self.name}: no such repository or revision {self.revision!r} on {constants.ENDPOINT}."
            ) from error
        except LocalEntryNotFoundError as error:
            raise ConfigError(f"{self._unreachable(file)} ({error.__class__.__name__})") from error
        except EntryNotFoundError:
            return None
        except OSError as error:
            raise ConfigError(f"{self._unreachable(file)} ({error.__class__.__name__})") from error

    def find_weights(self) -> None:
        """Cached ones, of either kind, before any are downloaded. Raises as :func:`fetch`."""
        for ask in (False, True):
            for single in SINGLE:
                if self.find(single, ask) is not None:
                    return
                index = self.find(f"{single}.index.json", ask)
                if index is not None:
                    lacking = [shard for shard in sorted(read_shards(index)) if self.find(shard) is None]
                    if lacking:
                        raise self.lacks(", ".join(lacking))
                    return
        raise self.lacks(" or ".join(SINGLE))

    def lacks(self, what: str) -> InputError:
        """The error for a file that has to be there."""
        if self.online:
            return CheckpointError(
                f"{self.name}: no {what} in this repository (revision {self.revision or 'main'}); give another "
                "revision or repository."
            )
        return ConfigError(self._unreachable(what))

    @cached_property
    def online(self) -> bool:
        """Whether the hub may be asked and answers; looked up once, and only when the cache does not know."""
        from huggingface_hub import constants

        return not constants.HF_HUB_OFFLINE and is_reachable(constants.ENDPOINT)

    def _unreachable(self, what: str) -> str:
        from huggingface_hub import constants

        return (
            f"{self.name}: not a local folder, {what} is not in the hub cache, and {constants.ENDPOINT} cannot be "
            f"reached. Use a packaged encoder ({', '.join(packaged_encoders()) or 'none'}), or download it on a "
            f"connected machine (`hf download {self.name}`) and give its path."
        )


def is_reachable(endpoint: str, seconds: float = 3.0) -> bool:
    """Whether the address of a hub answers within so many seconds."""
    import socket
    from urllib.parse import urlsplit

    address = urlsplit(endpoint)
    try:
        port = address.port or (443 if address.scheme == "https" else 80)
        socket.create_connection((address.hostname, port), timeout=seconds).close()
        return True
    except OSError:
        return False
