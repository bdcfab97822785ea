"""Folders that ``peft`` made: a LoRA trained elsewhere, and the CTC head that was trained with it.

``peft`` keeps no checksum of the base, so its name must fit. What our LoRA does not have (other ranks by layer,
biases, starts that change the base) is refused by name.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from speech_adapters.adapters.lora import LoRA
from speech_adapters.encoders.encoder import Encoder
from speech_adapters.encoders.others import ADAPTER_HUB, others_in
from speech_adapters.encoders.tensors import check_finite
from speech_adapters.errors import CheckpointError, ConfigError, InputError
from speech_adapters.files import read_json

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
PREFIX = "base_model.model."
"""Opens the name of each tensor in a file of ``peft``."""

_PLAIN: dict[str, tuple[Any, ...]] = {
    "bias": ("none",),
    "init_lora_weights": (True, False, "gaussian", "orthogonal", "eva"),  # the others change the base as well
    **dict.fromkeys(
        (
            "lora_bias", "rank_pattern", "alpha_pattern", "fan_in_fan_out", "layer_replication", "use_qalora",
            "trainable_token_indices", "target_parameters", "alora_invocation_tokens", "arrow_config",
        ),
        (None, False, {}, []),
    ),
}  # fmt: skip
"""Settings of ``peft.LoraConfig`` that change what is computed, and their values in a plain LoRA."""


@dataclass(frozen=True)
class PeftFolder:
    """What lies in a folder of ``peft``: ``lora`` by our names and ``modules`` trained beside it, such as lm_head."""

    config: dict[str, Any]
    lora: dict[str, Tensor]
    modules: dict[str, Tensor]


def is_peft_folder(folder: str | Path) -> bool:
    """Whether ``peft`` made a folder: it has its configuration, and no description of ours, nor weights of ours, which
    say that they had one: without it nothing tells what they mean."""
    from safetensors import SafetensorError, safe_open

    names = [CONFIG_FILE, "adapter.json", "head.json"]
    if [os.path.lexists(Path(folder) / name) for name in names] != [True, False, False]:
        return False
    try:
        with safe_open(Path(folder) / WEIGHTS_FILE, framework="pt") as file:
            return "description" not in (file.metadata() or {})
    except (SafetensorError, OSError):
        return True  # whoever reads it says what is wrong


def read_peft_folder(folder: str | Path) -> PeftFolder:
    """The files of a folder that ``peft`` made.

    Raises:
        CheckpointError: a file that is missing or damaged, another method than LoRA, a LoRA that is not plain.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = Path(folder)
    if (found := others_in(folder)) is not None and ADAPTER_HUB in found:
        raise CheckpointError(f"{folder}: {found}.")
    try:
        config = read_json(folder / CONFIG_FILE)
        tensors = load_file(folder / WEIGHTS_FILE)
    except (InputError, SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{folder}: {CONFIG_FILE} and {WEIGHTS_FILE}, as peft writes them, cannot be read ({error})."
        ) from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        found = config.get("peft_type") if isinstance(config, dict) else None
        raise CheckpointError(f"{folder}: holds {found!r} of peft; only LoRA can be imported.")
    for key, values in _PLAIN.items():
        if key in config and config[key] not in values:
            raise CheckpointError(
                f"{folder}: {CONFIG_FILE} has {key}={config[key]!r}, which LoRA here does not support; it cannot be "
                "imported."
            )
    if config.get("use_dora") and config.get("use_rslora"):
        raise CheckpointError(f"{folder}: use_dora and use_rslora together are not supported by LoRA here.")
    check_finite(tensors, str(folder))
    names = {name: name.removeprefix(PREFIX).replace(".default.", ".") for name in tensors}
    lora = {names[name]: tensor for name, tensor in tensors.items() if ".lora_" in name}
    modules = {names[name]: tensor for name, tensor in tensors.items() if ".lora_" not in name}
    return PeftFolder(config, lora, modules)


def import_lora(folder: str | Path, encoder: Encoder) -> tuple[LoRA, dict[str, Tensor]]:
    """A LoRA of ``peft`` as a configuration and tensors of ours.

    Raises:
        CheckpointError: as :func:`read_peft_folder`; another base, projections that this encoder does not have or that
            are not the same in each layer, none but a decoder's, other tensors of the encoder trained beside it,
            settings that are missing or that LoRA cannot have.
    """
    found = read_peft_folder(folder)
    _check_base(found.config.get("base_model_name_or_path"), encoder, folder)
    inside = {name: tensor for name, tensor in found.lora.items() if not _of_decoder(name)}
    if not inside and found.lora:
        raise CheckpointError(f"{folder}: its LoRA is on a decoder alone; what is adapted here is the encoder.")
    tensors, chosen, prefixes = _renamed(inside, encoder, folder)
    known = encoder.architecture.projections
    layers, targets = sorted({i for i, _ in chosen}), [t for t in known if t in {t for _, t in chosen}]
    if len(prefixes) != 1 or chosen != {(i, target) for i in layers for target in targets}:
        raise CheckpointError(
            f"{folder}: its projections are not the same in each layer that it changes; LoRA here takes the same of "
            "each."
        )
    own = {f"{prefix}{key}" for prefix in prefixes for key in encoder.model.state_dict()}
    if trained := sorted(own & found.modules.keys()):
        raise CheckpointError(
            f"{folder}: {trained[0]} of the encoder was trained beside the LoRA (modules_to_save of peft), which "
            "without it computes something else; it cannot be imported."
        )
    held = sorted({name.partition(".")[0] for name in found.modules})
    if len(inside) < len(found.lora):
        held.append("a LoRA of the decoder")
    if held:
        warnings.warn(
            f"{folder}: beside the LoRA it holds {', '.join(held)}, which an adapter leaves out; load_head on this "
            "folder takes over an lm_head.",
            stacklevel=3,
        )
    variant: Literal["lora", "rslora", "dora"]
    variant = "dora" if found.config.get("use_dora") else "rslora" if found.config.get("use_rslora") else "lora"
    try:
        config = LoRA(
            rank=found.config["r"],
            alpha=found.config["lora_alpha"],
            dropout=found.config.get("lora_dropout", 0.0),
            targets=tuple(targets),
            layers=None if len(layers) == encoder.num_layers else tuple(layers),
            variant=variant,
        )
    except KeyError as error:
        raise CheckpointError(f"{folder}: {CONFIG_FILE} has no {error}, which peft writes; restore it.") from None
    except ConfigError as error:
        raise CheckpointError(f"{folder}: {CONFIG_FILE} holds no LoRA ({error})") from error
    return config, tensors


def _renamed(
    lora: Mapping[str, Tensor], encoder: Encoder, folder: str | Path
) -> tuple[dict[str, Tensor], set[tuple[int, str]], set[str]]:
    """Tensors by our names, the layer and projection that each is on, and what stands before the encoder's names."""
    known = encoder.architecture.projections
    places = {encoder.part_name(i, target): (i, target) for i in range(encoder.num_layers) for target in known}
    tensors, chosen, prefixes = {}, set(), set()
    for name, tensor in lora.items():
        match = re.fullmatch(r"(.+)\.(lora_A|lora_B|lora_magnitude_vector)(?:\.weight)?", name)
        where = next((p for p in places if match and (match[1] == p or match[1].endswith(f".{p}"))), None)
        if match is None or where is None:
            raise CheckpointError(
                f"{folder}: {name!r} is not a projection in the layers of {encoder.name}; LoRA here is on "
                f"{', '.join(known)}."
            )
        prefixes.add(match[1].removesuffix(where))
        chosen.add(places[where])
        suffix = "" if match[2] == "lora_magnitude_vector" else ".weight"
        tensors[f"{PREFIX}{where}.{match[2]}{suffix}"] = tensor
    return tensors, chosen, prefixes


def lm_head(folder: str | Path) -> tuple[Tensor, Tensor]:
    """Weight (V, D) and bias (V,) of the CTC head that ``peft`` trained beside a LoRA (``modules_to_save``).

    Raises:
        CheckpointError: as :func:`read_peft_folder`; there is none.
    """
    modules: Mapping[str, Tensor] = read_peft_folder(folder).modules
    try:
        return modules["lm_head.weight"], modules["lm_head.bias"]
    except KeyError:
        raise CheckpointError(
            f"{folder}: no lm_head beside its LoRA (modules_to_save of peft); give the folder of a saved head."
        ) from None


def _of_decoder(name: str) -> bool:
    """Whether a tensor is a decoder's, whose layers may be called as an encoder's are (Whisper)."""
    return "decoder" in name.split(".")


def _check_base(base: Any, encoder: Encoder, folder: str | Path) -> None:
    if not base:
        warnings.warn(
            f"{folder}: does not name the base that it was trained on; make sure that it is {encoder.name}.",
            stacklevel=4,
        )
    elif Path(str(base)).name != Path(encoder.name).name:
        raise CheckpointError(
            f"{folder}: was trained on {base!r}, and this encoder is {encoder.name!r}. peft keeps no checksum of the "
            f"base: load that one, or correct base_model_name_or_path in {CONFIG_FILE} where both are the same."
        )
