"""A forward traced into an ONNX graph whose batch and samples are free, its parts named, and that graph in 8 bits.

``torch.export`` traces the forward first and refuses a length that became a constant; ``torch.onnx.export`` on a
module would write it down without a word.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from speech_adapters.adapters.hooks import AdapterPlan, Hooks, StackedHooks, walk
from speech_adapters.data.audio import SAMPLE_RATE
from speech_adapters.encoders.encoder import Encoder
from speech_adapters.errors import ConfigError
from speech_adapters.heads.base import HeadModule
from speech_adapters.saving.onnx_slots import HEAD, Place, SlotHooks

EVERY_SAMPLE = 2**62
"""The length that stands for all samples."""


class Forward(nn.Module):
    """(waveforms, lengths, slots) -> logits (or features) by name, and what else the head gives."""

    def __init__(self, encoder: Encoder, hooks: Hooks, head: HeadModule | None, places: Sequence[Place]) -> None:
        super().__init__()
        self.encoder, self.hooks, self.head, self.places = encoder, hooks, head, places
        self.adapters = nn.ModuleList(found for found in walk(hooks) if isinstance(found, nn.Module))

    def forward(self, waveforms: Tensor, lengths: Tensor, slots: dict[str, Tensor]) -> dict[str, Tensor]:
        """Waveforms (B, samples), lengths (B,) in samples, and slots by name -> outputs by name."""
        plan = AdapterPlan(StackedHooks((self.hooks, SlotHooks(self.encoder, self.places, slots))))
        output = self.encoder(waveforms, lengths, plan=plan)
        features = plan.read(self.encoder, output)
        frames, _ = output.lengths_of(features)
        if self.head is None:
            outputs = {"features": features, "frames": frames}
        else:
            own = {name.removeprefix(HEAD): tensor for name, tensor in slots.items() if name.startswith(HEAD)}
            scored = functional_call(self.head, own, (features, frames))
            outputs = {"logits": scored.logits, "frames": scored.lengths, "embedding": scored.embedding}
        return {name: tensor for name, tensor in outputs.items() if tensor is not None}


def trace(forward: Forward, own: Mapping[str, Tensor], free: Mapping[str, Mapping[int, str]], name: str) -> Any:
    """The graph as ``onnx.ModelProto``, all its parts named.

    Args:
        own: the slots' values, by name. free: of a slot, the names of its dimensions that may change.

    Raises:
        ConfigError: it cannot be traced; with torch's own words.
    """
    dynamic = torch.export.Dim.DYNAMIC
    samples = max(SAMPLE_RATE // 2, 4 * forward.encoder.receptive_field)
    # Two of what is free: a size of one would be taken for a constant.
    draw = torch.Generator().manual_seed(0)
    example = {
        key: torch.randn([2 if dim in free.get(key, ()) else n for dim, n in enumerate(tensor.shape)], generator=draw)
        for key, tensor in own.items()
    }
    shapes = (
        {0: dynamic, 1: dynamic},
        {0: dynamic},
        {key: dict.fromkeys(free.get(key, ()), dynamic) for key in own},
    )
    inputs = torch.randn(2, samples, generator=draw), torch.tensor([samples, samples * 3 // 4]), example
    with torch.no_grad():
        outputs = list(forward.eval()(*inputs))
    try:
        with _quiet(), torch.no_grad():
            program = torch.export.export(forward, inputs, dynamic_shapes=shapes, strict=False)
            exported = torch.onnx.export(program, dynamo=True, verbose=False)
    except Exception as error:  # of many classes of torch's own, none of them public
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ConfigError(
            f"{name}: torch.export makes no graph of free length of it: {reason} (Another adapter or head may do.)"
        ) from error
    assert exported is not None
    names = ["waveforms", "bounded_lengths", *own]
    inputs_there = list(exported.model.graph.inputs)
    if len(inputs_there) != len(names):
        raise ConfigError(f"{name}: {len(names)} inputs went into the trace and {len(inputs_there)} came out.")
    for value, input_name in zip(inputs_there, names, strict=True):
        value.name = input_name
    model = exported.model_proto
    _name_parts(model, outputs, own, free)
    return model


def _name_parts(
    model: Any,
    outputs: Sequence[str],
    own: Mapping[str, Tensor],
    free: Mapping[str, Mapping[int, str]],
) -> None:
    """Names of outputs and dimensions, the optional lengths, and the slots' own values."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    graph = model.graph
    del graph.value_info[:]  # shapes in names of torch's own
    shapes: dict[str, list[int | str]] = {
        "features": ["batch", "frames", "width"],
        "logits": ["batch", "outputs"] if "frames" not in outputs else ["batch", "frames", "outputs"],
        "frames": ["batch"],
        "embedding": ["batch", "width"],
    }
    made = [value.name for value in graph.output]
    kinds = [value.type.tensor_type.elem_type for value in graph.output]
    del graph.output[:]
    for value, name, kind in zip(made, outputs, kinds, strict=True):
        graph.node.append(helper.make_node("Identity", [value], [name], name=f"to_{name}"))
        graph.output.append(helper.make_tensor_value_info(name, kind, shapes[name]))

    del graph.input[:]
    graph.input.append(helper.make_tensor_value_info("waveforms", TensorProto.FLOAT, ["batch", "samples"]))
    graph.input.append(helper.make_tensor_value_info("lengths", TensorProto.INT64, ["utterances"]))
    every = torch.tensor([EVERY_SAMPLE]).numpy()
    graph.initializer.append(numpy_helper.from_array(every, "lengths"))
    bounded = [
        helper.make_node("Shape", ["waveforms"], ["batch_size"], name="batch_size", start=0, end=1),
        helper.make_node("Shape", ["waveforms"], ["sample_count"], name="sample_count", start=1, end=2),
        helper.make_node("Expand", ["lengths", "batch_size"], ["each_length"], name="each_length"),
        helper.make_node("Min", ["each_length", "sample_count"], ["bounded_lengths"], name="bounded_lengths"),
    ]
    for node in reversed(bounded):
        graph.node.insert(0, node)
    for name, tensor in own.items():
        shape = [free.get(name, {}).get(dim, size) for dim, size in enumerate(tensor.shape)]
        shape = [f"{name}.rank" if size == "rank" else size for size in shape]
        graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
        graph.initializer.append(numpy_helper.from_array(tensor.cpu().numpy(), name))
    for number, node in enumerate(graph.node):
        node.name = node.name or f"node_{number}"
    onnx.checker.check_model(model)


def quantize(graph_file: Path, target: Path, own: Mapping[str, Tensor]) -> None:
    """Write a graph with the encoder's matrices in 8 bits; those of the slots, ``own``, stay in float32."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    graph = onnx.load(graph_file).graph
    reached = set(own)  # what is computed of slots alone, such as their transpose
    for node in graph.node:
        if node.op_type in ("Transpose", "Identity", "Cast") and set(node.input) <= reached:
            reached |= set(node.output)
    slotted = [node.name for node in graph.node if set(node.input) & reached]
    with _quiet():
        quantize_dynamic(
            graph_file,
            target,
            op_types_to_quantize=["MatMul", "Gemm"],
            weight_type=QuantType.QInt8,
            per_channel=True,
            nodes_to_exclude=slotted,
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' talk of their own workings."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
