"""Slots of an ONNX graph: the weights that a file of onnxruntime's multi-LoRA format puts in place of the graph's own.

    <projection>.lora_A (D_in, r), <projection>.lora_B (r, D_out)     y = W x + x A B, B with the scale in it
    head.<name>                                                       the tensors of the head

A slot is an *overridable initialiser*: it stands among the graph's inputs and among its weights, so that it need not
be fed. The rank of each projection, and the number of symbols or classes, may differ from file to file. Zeros of rank
1 stand where an adapter changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from speech_adapters.adapters.base import AdapterModule
from speech_adapters.adapters.hooks import Hooks
from speech_adapters.adapters.lora import LoRAModule
from speech_adapters.adapters.projections import projection
from speech_adapters.encoders.encoder import Encoder
from speech_adapters.encoders.plan import Site
from speech_adapters.errors import ConfigError
from speech_adapters.heads.base import HeadModule

#: A projection: its layer and its name.
Place = tuple[int, str]

HEAD = "head."


def places_of(encoder: Encoder, targets: Iterable[str]) -> list[Place]:
    """The projections of these names, in all layers. Raises ConfigError for an unknown name."""
    targets, known = tuple(targets), encoder.architecture.projections
    if unknown := [target for target in targets if target not in known]:
        raise ConfigError(f"slots={targets}: {unknown[0]!r} is not a projection; choose from {', '.join(known)}.")
    return [(index, target) for index in range(encoder.num_layers) for target in targets]


def low_rank(adapter: AdapterModule | None) -> dict[Place, tuple[Tensor, Tensor]] | None:
    """A and B by place of what fits into slots, empty for no adapter; None for an adapter that does not fit."""
    if adapter is None:
        return {}
    return adapter.low_rank() if isinstance(adapter, LoRAModule) else None


def lora_slots(
    encoder: Encoder, pairs: Mapping[Place, tuple[Tensor, Tensor]], places: Iterable[Place]
) -> dict[str, Tensor]:
    """The slots of ``places`` by name: A and B of those among ``pairs``, zeros for the others."""
    slots = {}
    for place in places:
        linear = projection(encoder, *place)
        zeros = linear.weight.new_zeros(1, linear.in_features), linear.weight.new_zeros(linear.out_features, 1)
        a, b = pairs.get(place, zeros)
        for name, tensor in zip(lora_names(encoder, place), (a, b), strict=True):
            slots[name] = tensor.T.contiguous()
    return slots


def lora_names(encoder: Encoder, place: Place) -> tuple[str, str]:
    """Names of a projection's two slots."""
    name = encoder.part_name(*place)
    return f"{name}.lora_A", f"{name}.lora_B"


def head_slots(head: HeadModule | None) -> dict[str, Tensor]:
    """The head's tensors by the names of their slots."""
    return {} if head is None else {HEAD + name: parameter.detach() for name, parameter in head.named_parameters()}


def free_sizes(head: HeadModule | None) -> dict[str, dict[int, str]]:
    """Names of the dimensions of a head's slots that may change from file to file: those of its outputs."""
    linears = [] if head is None else [(n, m) for n, m in head.named_modules() if isinstance(m, nn.Linear)]
    if head is None or head.config.head_type not in ("ctc", "classification") or not linears:
        return {}
    return {f"{HEAD}{linears[-1][0]}.{name}": {0: "outputs"} for name in ("weight", "bias")}


class SlotHooks(Hooks):
    """LoRA whose matrices are handed in by name, as the graph's inputs are."""

    def __init__(self, encoder: Encoder, places: Iterable[Place], slots: Mapping[str, Tensor]) -> None:
        self.names = {place: lora_names(encoder, place) for place in places}
        self.slots = slots

    def delta(self, name: str, index: int, site: Site) -> Tensor | None:
        if (index, name) not in self.names:
            return None
        a, b = self.names[index, name]
        return torch.matmul(torch.matmul(site.input, self.slots[a]), self.slots[b])


def write_adapter(path: Any, slots: Mapping[str, Tensor], version: int) -> None:
    """Write slots as a file of onnxruntime; ``version`` is that of the graph that they belong to.

    Raises:
        OSError: the file cannot be written whole.
    """
    import onnxruntime as ort

    form = ort.AdapterFormat()
    form.set_adapter_version(1)
    form.set_model_version(version)
    form.set_parameters(
        {name: ort.OrtValue.ortvalue_from_numpy(tensor.cpu().numpy()) for name, tensor in slots.items()}
    )
    try:
        form.export_adapter(str(path))
    except RuntimeError as error:  # which does not tell why
        raise OSError("onnxruntime fails to write it; is the disk full?") from error
