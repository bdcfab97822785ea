"""An ONNX graph of the encoder's forward with an adapter and a head in it, for onnxruntime and sherpa-onnx.

    waveforms (batch, samples) float32 at 16 kHz, lengths (batch,) int64     ->     logits, and lengths in frames

Batch and samples are free. Without ``lengths`` all samples count, so that readers which know one input, such as
sherpa-onnx, open the file too. Waveforms are normalised inside where the encoder wants it. What may be put in place of
the graph's own LoRA and head, ``onnx_slots.py`` says; ``graph.json`` beside the graph lists it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from speech_adapters.adapters.base import AdapterModule
from speech_adapters.adapters.hooks import Hooks
from speech_adapters.data.audio import SAMPLE_RATE
from speech_adapters.encoders.encoder import Encoder
from speech_adapters.encoders.tensors import check_finite
from speech_adapters.errors import CheckpointError, ConfigError
from speech_adapters.files import atomic, new_folder, read_json, write_json, write_text
from speech_adapters.heads.base import HeadModule
from speech_adapters.heads.classification import ClassificationHeadModule
from speech_adapters.heads.ctc import CTCHeadModule
from speech_adapters.saving.onnx_slots import (
    HEAD,
    Place,
    free_sizes,
    head_slots,
    lora_names,
    lora_slots,
    low_rank,
    places_of,
    write_adapter,
)
from speech_adapters.saving.onnx_trace import Forward, quantize, trace
from speech_adapters.text import Vocabulary

GRAPH, QUANTIZED, DESCRIPTION, SUFFIX = "model.onnx", "model.int8.onnx", "graph.json", ".onnx_adapter"
"""The files of an export; an adapter that the graph takes is ``<name>.onnx_adapter``."""

LARGEST = 2**31 - 2**20
"""Bytes of weights that one ONNX file holds: protobuf ends at 2 GiB."""


def save_onnx(
    encoder: Encoder,
    hooks: Hooks,
    adapter: AdapterModule | None,
    folder: str | os.PathLike[str],
    head: HeadModule | None = None,
    *,
    slots: Sequence[str] | None = None,
    int8: bool = False,
) -> Path:
    """Write ``model.onnx``, ``graph.json`` and the symbols or classes into a new folder; returns the folder.

    Args:
        hooks: what acts in the encoder; adapter: the one that it is, where it is a single one.
        slots: projections that later adapters may change, in every layer; by default those that ``adapter`` changes.
            An adapter other than LoRA is written into the graph as it is.
        int8: write ``model.int8.onnx`` too: the encoder's matrices in 8 bits, activations quantised as they come
            (onnxruntime's dynamic quantisation; convolutions, slots and head stay in float32).

    Raises:
        ConfigError: what has no ONNX form, with the reason; a folder that is taken; packages that are missing.
        CheckpointError: a weight that is not finite.
        InputError: a folder that cannot be written.
    """
    _check_packages()
    _check_base(encoder)
    _check_labels(head)
    width = hooks.output_size or encoder.output_size
    if head is not None and head.input_size != width:
        raise ConfigError(
            f"this head reads features of {head.input_size}, and the adapter gives {width}; export its own."
        )
    pairs = low_rank(adapter)
    places = list(pairs or {}) if slots is None else places_of(encoder, slots)
    _check_places(pairs or {}, places)
    own = lora_slots(encoder, pairs or {}, places) | head_slots(head)
    check_finite(encoder.model.state_dict() | own, f"{folder}: not saved")
    free = {
        name: {dim: "rank"} for place in places for name, dim in zip(lora_names(encoder, place), (1, 0), strict=True)
    }
    free |= free_sizes(head)
    traced = Hooks() if adapter is not None and pairs is not None else hooks
    with new_folder(folder) as temporary:
        forward = Forward(encoder, traced, head, places)
        graph = trace(forward, own, free, encoder.name)
        description = _description(encoder, head, places, own, free)
        for key in ("sample_rate", "base", "fingerprint"):
            graph.metadata_props.add(key=key, value=str(description[key]))
        with atomic(temporary / GRAPH) as file:
            file.write(graph.SerializeToString())
        write_json(temporary / DESCRIPTION, description)
        _write_outputs(temporary, "", head)
        if int8:
            quantize(temporary / GRAPH, temporary / QUANTIZED, own)
    return Path(folder)


def save_onnx_adapter(
    encoder: Encoder, adapter: AdapterModule | None, file: str | os.PathLike[str], head: HeadModule | None = None
) -> Path:
    """Write an adapter and its head for a graph that :func:`save_onnx` wrote into the same folder; returns the file.

    Its symbols or classes go beside it, as ``<name>.tokens.txt`` or ``<name>.labels.txt``.

    Raises:
        CheckpointError: no graph there, or one of another base; a weight that is not finite.
        ConfigError: an adapter or a head for which the graph has no slots; a file that is there already.
        InputError: a file that cannot be written.
    """
    _check_packages()
    _check_labels(head)
    file = Path(file)
    if file.suffix != SUFFIX:
        raise ConfigError(f"{file}: name it {file.stem}{SUFFIX}, in the folder of the graph that it is for.")
    outputs = [file.with_suffix(f".{kind}.txt") for kind in ("tokens", "labels")]
    if there := next((path for path in (file, *outputs) if path.exists()), None):
        raise ConfigError(f"{there}: exists already; choose another name.")
    if not (file.parent / DESCRIPTION).is_file():
        raise CheckpointError(
            f"{file.parent}: holds no {DESCRIPTION}, so no graph that takes adapters; export it first."
        )
    graph = read_json(file.parent / DESCRIPTION)
    base = {"normalized_inside": encoder.normalize, "settings": encoder.settings}
    other = [] if graph.get("fingerprint") in encoder.fingerprints else ["fingerprint"]
    if other := other + [key for key in base if graph.get(key, base[key]) != base[key]]:
        raise CheckpointError(
            f"{file}: the graph beside it is of {graph['base']!r}, this adapter of {encoder.name!r}, which has other "
            f"{other[0]}."
        )
    pairs = low_rank(adapter)
    if adapter is None or pairs is None:
        method = "no adapter" if adapter is None else adapter.config.method
        raise ConfigError(
            f"{file}: {method} fits into no slot, which LoRA (and rsLoRA) does; export a graph of its own."
        )
    places = [(int(index), str(target)) for index, target in graph["places"]]
    _check_places(pairs, places)
    own = lora_slots(encoder, pairs, places) | head_slots(head)
    check_finite(own, f"{file}: not saved")
    _check_head(own, graph["slots"], head)
    with atomic(file) as opened:
        path = Path(opened.name)
        write_adapter(path, own, graph["version"])
    _write_outputs(file.parent, f"{file.stem}.", head)
    return file


def _check_packages() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"{error.name} is not installed: pip install 'speech-adapters[onnx]'.") from error


def _check_base(encoder: Encoder) -> None:
    if encoder.quantization is not None:
        raise ConfigError(
            f"{encoder.name}: an encoder held in {encoder.quantization} has no ONNX form; load it without quantize "
            "and export with int8=True."
        )
    if encoder.model.dtype != torch.float32 or encoder.device.type != "cpu":
        raise ConfigError(
            f"{encoder.name}: export from float32 on the CPU, not from {encoder.model.dtype} on {encoder.device}; "
            "load it without dtype and device."
        )
    size = sum(parameter.numel() * parameter.element_size() for parameter in encoder.model.parameters())
    if size > LARGEST:
        raise ConfigError(f"{encoder.name}: {size / 1e9:.1f} GB of weights; an ONNX file holds 2 GB.")


def _check_labels(head: HeadModule | None) -> None:
    labels = head.config.labels if isinstance(head, ClassificationHeadModule) else ()
    if (broken := next((label for label in labels if "\n" in label), None)) is not None:
        raise ConfigError(f"the label {broken!r} is of two lines, and labels.txt has a line for each; rename it.")


def _check_places(pairs: Mapping[Place, object], places: Sequence[Place]) -> None:
    if missing := [place for place in pairs if place not in places]:
        layer, target = missing[0]
        raise ConfigError(
            f"the adapter changes {target} of layer {layer}, for which the graph has no slot; export the graph with "
            f"slots={tuple(dict.fromkeys([*(t for _, t in places), *(t for _, t in missing)]))}."
        )


def _check_head(own: Mapping[str, Tensor], slots: Mapping[str, list[int | str]], head: HeadModule | None) -> None:
    """Shapes of the head's tensors against those that the graph has."""
    wanted = {name: shape for name, shape in slots.items() if name.startswith(HEAD)}
    given = {name: list(tensor.shape) for name, tensor in own.items() if name.startswith(HEAD)}
    fits = wanted.keys() == given.keys() and all(
        len(shape) == len(given[name])
        and all(isinstance(size, str) or size == mine for size, mine in zip(shape, given[name], strict=True))
        for name, shape in wanted.items()
    )
    if not fits:
        kind = "no head" if head is None else f"a head of type {head.config.head_type!r} with {given}"
        raise ConfigError(f"the graph has slots for a head with {wanted or 'nothing'}, and this is {kind}.")


def _description(
    encoder: Encoder,
    head: HeadModule | None,
    places: Sequence[Place],
    own: Mapping[str, Tensor],
    free: Mapping[str, Mapping[int, str]],
) -> dict[str, Any]:
    return {
        "base": encoder.name,
        "fingerprint": encoder.fingerprint,
        "version": int(encoder.fingerprint[:7], 16),
        "sample_rate": SAMPLE_RATE,
        "min_samples": encoder.receptive_field,
        "max_samples": encoder.max_samples,
        "normalized_inside": encoder.normalize,
        "settings": encoder.settings,
        "head_type": None if head is None else head.config.head_type,
        "places": [list(place) for place in places],
        "slots": {
            name: [free.get(name, {}).get(dim, size) for dim, size in enumerate(tensor.shape)]
            for name, tensor in own.items()
        },
    }


def _write_outputs(folder: Path, prefix: str, head: HeadModule | None) -> None:
    """``tokens.txt`` of a CTC head, ``labels.txt`` of a classification head: what the outputs stand for."""
    if isinstance(head, CTCHeadModule):
        write_text(folder / f"{prefix}tokens.txt", tokens_text(head.config.vocabulary))
    elif isinstance(head, ClassificationHeadModule):
        write_text(folder / f"{prefix}labels.txt", "".join(f"{label}\n" for label in head.config.labels))


def tokens_text(vocabulary: Vocabulary) -> str:
    """sherpa-onnx's list of symbols: the blank is ``<blk>``, and a word begins with ``▁``."""
    names = {vocabulary.blank: "<blk>"}
    if vocabulary.delimiter is not None and vocabulary.scores is None:
        names[vocabulary.delimiter] = "▁"
    return "".join(f"{names.get(token, token)} {index}\n" for index, token in enumerate(vocabulary.tokens))
