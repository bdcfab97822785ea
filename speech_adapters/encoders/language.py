"""Languages of MMS (Pratap et al., 2023): small adapters in every layer, and a CTC head with symbols of its own.

``adapter.<language>.safetensors`` (or ``.bin``) holds both beside the weights, whose own are those of one language;
``vocab.json`` holds a vocabulary per language, and ``tokenizer_config.json`` says which one is spoken
(``target_lang``). Here a language's adapters are part of the frozen base.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor, nn

from speech_adapters.encoders.json_files import is_there, read_json
from speech_adapters.encoders.tensors import check_finite
from speech_adapters.encoders.weights import open_tensors
from speech_adapters.errors import CheckpointError, ConfigError

#: What a language's tensors are called inside the model.
PART = "adapter_layer"


def language_files(language: str) -> tuple[str, ...]:
    """Names that its weights may have, the one that is taken first; a script is told apart by a hyphen."""
    return f"adapter.{language}.safetensors", f"adapter.{language}.bin"


def spoken(folder: Path, target_lang: str | None) -> str | None:
    """The language of a folder: the one asked for, else the one that its tokenizer speaks; None where it has none.

    Raises:
        ConfigError: a language that its vocabulary does not have, or several without a word on which.
    """
    vocabulary = folder / "vocab.json"
    content = read_json(vocabulary) if is_there(vocabulary) else {}
    known = sorted(key for key, value in content.items() if isinstance(value, dict))
    language = target_lang
    if language is None and known:
        language = known[0] if len(known) == 1 else _own(folder)
    if known and language not in known:
        asked = "say which one" if language is None else f"it has no {language!r}"
        raise ConfigError(
            f"{folder}: holds {len(known)} languages and {asked}: target_lang=... (or NAME:LANGUAGE), one of "
            f"{', '.join(known[:20])}{' ...' if len(known) > 20 else ''}."
        )
    return language


def language_tensors(folder: Path, language: str) -> dict[str, Tensor]:
    """A language's tensors by their names in a ``*ForCTC`` model, in float32; none where the weights' own are its, as
    a fine-tuned MMS is saved.

    Raises:
        ConfigError: no weights of this language. CheckpointError: a damaged file.
    """
    for file in language_files(language):
        if (folder / file).is_file():
            with open_tensors(folder / file) as tensors:
                found = {name: tensors.get(name).float() for name in tensors.shapes}
            check_finite(found, str(folder / file))
            return found
    if language == _own(folder):
        return {}
    pattern = re.compile(r"adapter\.(.+)\.(?:safetensors|bin)")
    known = sorted({match[1] for path in folder.iterdir() if (match := pattern.fullmatch(path.name))})
    raise ConfigError(
        f"{folder}: target_lang={language!r} has no {language_files(language)[0]} there; there are: "
        f"{', '.join(known) or 'none: it is not an MMS checkpoint'}."
    )


def _own(folder: Path) -> str | None:
    """The language of a folder's own weights, as its tokenizer says."""
    config = folder / "tokenizer_config.json"
    language = read_json(config).get("target_lang") if is_there(config) else None
    return language if isinstance(language, str) else None


@torch.no_grad()
def speak(model: nn.Module, tensors: dict[str, Tensor], where: str) -> None:
    """Put a language's adapters into a bare model, in place.

    Raises:
        CheckpointError: tensors that are not all of the model's, in its shapes; ``where`` opens the message.
    """
    own = {name: tensor for name, tensor in model.state_dict().items() if f".{PART}." in name}
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    given = {k.removeprefix(prefix): tensor for k, tensor in tensors.items() if not k.startswith("lm_head.")}
    wrong = sorted(own.keys() ^ given.keys()) or [name for name in own if own[name].shape != given[name].shape]
    if wrong:
        raise CheckpointError(f"{where}: the language's tensor {wrong[0]!r} is missing, unexpected or misshapen.")
    for name, tensor in given.items():
        own[name].copy_(tensor)
