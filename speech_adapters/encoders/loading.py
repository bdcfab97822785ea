"""Load any encoder of the families: a packaged small one, a local folder, or a hub id; frozen, ready for adapters.

Families: those of :mod:`speech_adapters.encoders.families`. Checkpoints of the bare encoder and of
``*ForCTC``, ``*ForSequenceClassification``, ``*ForPreTraining`` and the like load alike; a CTC head and its vocabulary
can be taken along (:attr:`Encoder.ctc`).
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from speech_adapters.encoders.ctc import read_ctc
from speech_adapters.encoders.encoder import Encoder
from speech_adapters.encoders.families import family_named
from speech_adapters.encoders.families.base import Family
from speech_adapters.encoders.json_files import read_json
from speech_adapters.encoders.language import language_tensors, speak, spoken
from speech_adapters.encoders.others import others_in
from speech_adapters.encoders.preprocessing import read_normalize
from speech_adapters.encoders.quantization import Quantization
from speech_adapters.encoders.sources import Source, find_folder
from speech_adapters.encoders.tensors import check_finite
from speech_adapters.encoders.weights import read_tensors, stored_shapes
from speech_adapters.errors import CheckpointError, ConfigError, InputError

WRAPPERS = {"module.": "DataParallel", "base_model.model.": "peft", "_orig_mod.": "torch.compile"}
"""What stands before all names where something around a model was saved."""

INNER = {
    "_orig_mod": "a part was compiled (torch.compile): save the model that was compiled",
    "_fsdp_wrapped_module": "FSDP was around parts of it: save its full state",
    "_checkpoint_wrapped_module": "activation checkpointing was around parts of it: save what is inside",
    "base_layer": "adapters of peft are in it: merge them (merge_and_unload) and save that",
}
"""Words within names where something around a model's parts was saved."""


def load_encoder(
    name_or_path: str | Path,
    *,
    revision: str | None = None,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    quantize: Quantization | None = None,
    target_lang: str | None = None,
) -> Encoder:
    """Load a frozen encoder.

    Args:
        name_or_path: a packaged name ("tiny-wavlm"), a local folder in Hugging Face format, or a hub id
            ("microsoft/wavlm-base-plus"); ``NAME@REVISION:LANGUAGE`` says the next and the last argument too.
        revision: branch, tag or commit on the hub.
        dtype: of the frozen weights, e.g. ``torch.bfloat16`` on a GPU. The fingerprint is taken before the cast.
        quantize: "int8", "int4" or "nf4": hold the frozen weights in 8 or 4 bits; adapters stay as they are.
        target_lang: the language of an MMS checkpoint ("fra", "uzb-script_cyrillic"); None for the one that its
            weights have.

    Raises:
        ConfigError: no such name, folder, device or language, an unsupported family, or a hub id that is neither
            cached nor reachable.
        CheckpointError: a checkpoint cut short, without weights, with weights that are not finite or do not fit its
            configuration, or without a word on how its waveforms are prepared.
    """
    device, source = usable_device(device), Source.read(name_or_path, revision, target_lang)
    name, revision, target_lang = source.name, source.revision, source.target_lang
    folder = find_folder(name, revision, target_lang)
    written = read_json(folder / "config.json")
    try:
        family = family_named(written.get("model_type"))
    except ConfigError as error:
        other = others_in(folder) if "model_type" not in written else None
        raise ConfigError(f"{name}: config.json: {error}{f' And {other}.' if other else ''}") from error
    if written.get("quantization_config"):
        raise ConfigError(
            f"{name}: its weights are quantised (quantization_config in config.json); give the checkpoint that they "
            "were made from, and quantize= to hold that in few bits."
        )
    config = _load_config(family, folder)
    shapes = stored_shapes(folder)
    _check_names(name, shapes)
    if (fault := family.fault(config, shapes)) is not None:
        if (prefix := _prefix_of(family, config, shapes)) is not None:
            raise _behind(name, prefix)
        raise CheckpointError(f"{name}: config.json does not belong to these weights: {fault}; download both again.")
    normalize = read_normalize(family, folder, config)
    language = spoken(folder, target_lang)
    own = {} if target_lang is None else language_tensors(folder, target_lang)
    ctc = read_ctc(folder, shapes, language, own)
    model = _load_model(family, folder, name, shapes)
    if own:
        speak(model, own, f"{name}, target_lang={target_lang!r}")
    encoder = Encoder(model, name, revision, normalize, ctc, folder=folder, language=target_lang)
    if dtype != torch.float32:
        _ = encoder.fingerprint
    if quantize is not None:
        encoder.quantize(quantize)
    encoder.model.to(device=device, dtype=dtype)
    return encoder


def usable_device(name: str | torch.device) -> torch.device:
    """The device of this name. Raises ConfigError where it is none, or not there."""
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # an unknown word; no driver, no such card, not compiled in
        other = "cpu" if str(name).startswith("cuda") else "cpu or cuda"
        raise ConfigError(f"device {name!r}: cannot be used here ({_reason(error)}); choose {other}.") from error
    if device.type == "meta":
        raise ConfigError("device 'meta': it holds no values; choose cpu or cuda.")
    return device


def stored_tensors(encoder: Encoder, parts: Sequence[str]) -> dict[str, Tensor]:
    """Float32 tensors beside the encoder in its checkpoint whose names start with one of ``parts``, such as
    ``quantizer`` of wav2vec 2.0's pre-training head; none where it has none or did not come from a checkpoint."""
    return {} if encoder.folder is None else read_tensors(encoder.folder, lambda name: name.split(".")[0] in parts)


def _check_names(name: str, shapes: Mapping[str, tuple[int, ...]]) -> None:
    for prefix, wrapper in WRAPPERS.items():
        if shapes and all(key.startswith(prefix) for key in shapes):
            raise CheckpointError(
                f"{name}: all its tensors are called {prefix}NAME: a wrapper ({wrapper}) was saved in place of the "
                "model; save what is inside it, or take that off the names."
            )

    for key, shape in shapes.items():
        if 0 in shape:
            raise CheckpointError(
                f"{name}: {key} is empty, as in a part that ZeRO-3 leaves; consolidate it (zero_to_fp32.py)."
            )
        for word in INNER.keys() & {*key.split(".")}:
            raise CheckpointError(f"{name}: a tensor is called {key}: {INNER[word]}.")


def _prefix_of(family: Family, config: Any, shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """What stands before the names of the encoder that the configuration describes, inside another model."""
    tried = {key[: place + 1] for key in shapes for place, symbol in enumerate(key) if symbol == "."}
    for prefix in sorted(tried, key=len):
        inside = {key.removeprefix(prefix): shape for key, shape in shapes.items() if key.startswith(prefix)}
        if family.fault(config, inside) is None:
            return prefix
    return None


def _behind(name: str, prefix: str) -> CheckpointError:
    return CheckpointError(
        f"{name}: the weights have none of the encoder's tensors by their names; they stand behind {prefix!r}: save "
        "what is inside, or restore the config.json that belongs to them."
    )


def _load_config(family: Family, folder: Path) -> Any:
    with quiet_transformers():
        try:
            return family.read_config(folder)
        except InputError as error:
            raise CheckpointError(f"{folder / 'config.json'}: {error}.") from error
        except Exception as error:  # whatever a foreign library makes of values that it did not expect
            reason = _reason(error)
            raise CheckpointError(
                f"{folder / 'config.json'}: cannot be used ({reason}); correct that value."
            ) from error


def _load_model(family: Family, folder: Path, name: str, shapes: Collection[str]) -> nn.Module:
    """The stock model of a folder whose weights have tensors of these names: all that it needs, and none left over."""
    with quiet_transformers():
        try:
            model, report = family.load(
                folder, dtype=torch.float32, local_files_only=True, ignore_mismatched_sizes=True
            )
        except CheckpointError:
            raise
        except Exception as error:  # as above
            raise CheckpointError(
                f"{name}: its weights cannot be read ({_reason(error)}); the checkpoint is cut short, changed, or not "
                "made for its config.json: download it again."
            ) from error
    missing = sorted(report["missing_keys"])
    if not {*model.state_dict()} - {*missing, *family.may_lack}:
        behind = {key.removesuffix(inner) for key in shapes for inner in missing if key.endswith(f".{inner}")}
        if behind:
            raise _behind(name, min(behind))
        raise CheckpointError(
            f"{name}: the weights have none of the encoder's tensors by their names; it is another model."
        )
    if missing:
        raise CheckpointError(
            f"{name}: the checkpoint lacks {len(missing)} of the encoder's tensors ({', '.join(missing[:3])} ...); it "
            "belongs to another architecture or is incomplete."
        )
    for key, stored, built in sorted(report.get("mismatched_keys", ())):
        raise CheckpointError(
            f"{name}: {key} has the shape {tuple(stored)}, and by config.json {tuple(built)}; restore the config.json "
            "that belongs to these weights."
        )
    if dropped := _left_over(model, report.get("unexpected_keys", ()), shapes):
        raise CheckpointError(
            f"{name}: config.json builds an encoder without {len(dropped)} of the tensors that the weights have for "
            f"it ({', '.join(dropped[:3])} ...), and it would compute something else; restore the config.json that "
            "belongs to them."
        )
    check_finite(model.state_dict(), name)
    return model


def _left_over(model: nn.Module, unexpected: Collection[str], shapes: Collection[str]) -> list[str]:
    """Of the tensors that the model did not take, those that are the encoder's and not a head's.

    A model around the encoder has its tensors under a prefix: what has none is the model's own, whatever its name.
    """
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    around = any(key.startswith(prefix) for key in shapes)
    left = (key for key in unexpected if key.startswith(prefix) or not around)
    return sorted(key for key in left if hasattr(model, key.removeprefix(prefix).split(".")[0]))


def _reason(error: Exception) -> str:
    """The first line of a foreign error, for a message of ours."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    first = " ".join(lines[: 2 if lines and lines[0].endswith(":") else 1])  # the second says what the first announces
    return first.rstrip(".:")[:300] or type(error).__name__


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Hide loading reports: what a user can act on becomes an error here, an unused head is no news."""
    from transformers.utils import logging as transformers_logging

    before = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(logging.CRITICAL)
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)
        if bars:
            transformers_logging.enable_progress_bar()
