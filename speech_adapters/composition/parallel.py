"""Forwards with several outputs: one adapter a sample in a mixed batch, and branches over a shared lower part."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from speech_adapters.adapters.hooks import Stacked
from speech_adapters.composition.blocks import Parallel, Stack
from speech_adapters.composition.mixed_batch import Choice
from speech_adapters.errors import ConfigError

if TYPE_CHECKING:
    from speech_adapters.model import ModelOutput, SpeechAdapterModel

Inputs = dict[str, Any]


def mixed_forward(
    model: SpeechAdapterModel,
    inputs: Inputs,
    choices: Sequence[Choice],
    heads: Sequence[str | None] | None,
    targets: Tensor | None,
) -> ModelOutput:
    """``model(..., adapter=choices, head=heads)``; see :mod:`speech_adapters.composition.mixed_batch`."""
    batch = next(len(value) for value in inputs.values() if isinstance(value, Tensor))
    for word, given in (("adapter", choices), ("head", heads)):
        if given is not None and (isinstance(given, str) or len(given) != batch):
            raise ConfigError(f"{word}={given!r}: give one choice for each of the {batch} samples.")
    order, mixed = model.mixer.sort(choices, model.adapters, model.encoder.num_layers)
    index = torch.tensor(order, device=model.encoder.device)
    back = index.argsort()
    with_order = {key: value[index] if isinstance(value, Tensor) else value for key, value in inputs.items()}
    result, _ = model.run(mixed, **with_order)
    rows = mixed.features(model.encoder, result)
    features = [rows[place] for place in back.tolist()]
    result.last_hidden_state = result.last_hidden_state[back]
    result.hidden_states = tuple(state[back] for state in result.hidden_states)
    result.frame_lengths = result.frame_lengths[back]
    result.mask = None if result.mask is None else result.mask[back]
    result.cnn_output = None if result.cnn_output is None else result.cnn_output[back]
    result.features = torch.stack(features) if len({len(row[0]) for row in features}) == 1 else features
    if heads is None:
        if model.head is not None:
            for choice, row in zip(choices, features, strict=True):
                _check_width(model, model.active_head, choice, row)
        model.score(result, targets)
        return result
    if targets is not None:
        raise ConfigError("targets go with one head for the batch; with head=[...] score the logits of each sample.")
    logits: list[Tensor | None] = [None] * batch
    for name in dict.fromkeys(name for name in heads if name is not None):
        own = [place for place, head in enumerate(heads) if head == name]
        for place in own:
            _check_width(model, name, choices[place], features[place])
        scored = model.heads[name](torch.stack([features[place] for place in own]), result.frame_lengths[own])
        for place, row in zip(own, scored.logits, strict=True):
            logits[place] = row
    result.logits = logits
    return result


def parallel_forward(
    model: SpeechAdapterModel,
    inputs: Inputs,
    value: Parallel,
    heads: Sequence[str | None] | None,
    targets: Tensor | None,
) -> dict[str, ModelOutput]:
    """Each branch's output by its name; the layers below all branches run once."""
    if heads is not None and (isinstance(heads, str) or len(heads) != len(value.members)):
        raise ConfigError(f"head={heads!r}: give one head for each branch of {value!r}.")
    if targets is not None:
        raise ConfigError(f"{value!r}: targets belong to one output; score the branches' logits, or train one by one.")
    roots = [model.places(member) for member in value.members]
    first = min(root.first_layer for root in roots)
    shared = None
    if "hidden" not in inputs and first >= -1:
        shared, _ = model.run(Stacked(()), **inputs, stop_layer=max(first, 0))
    outputs = {}
    active, heads = model.active_head, heads if heads is not None else [model.active_head] * len(roots)
    try:
        for member, root, head in zip(value.members, roots, heads, strict=True):
            branch = _from_shared(inputs, shared, first) if shared is not None else inputs
            result, plan = model.run(root, **branch)
            if shared is not None and first > 0:
                result.hidden_states = (*shared.hidden_states[:-1], *result.hidden_states)
            result.features = plan.read(model.encoder, result)
            model.set_head(head)
            if head is not None:
                _check_width(model, head, member, result.features[0])
            model.score(result, None)
            outputs[member if isinstance(member, str) else repr(member)] = result
    finally:
        model.set_head(active)
    return outputs


def _from_shared(inputs: Inputs, shared: ModelOutput, first: int) -> Inputs:
    """Where a branch starts: at the CNN's output, or at the lowest layer that a branch changes."""
    frames = None if shared.mask is None else shared.frame_lengths
    if first < 0:
        return {"cnn_output": shared.cnn_output, "frames": frames, "time_mask": inputs.get("time_mask")}
    return {"hidden": shared.hidden_states[-1], "frames": frames, "start_layer": first}


def _check_width(model: SpeechAdapterModel, head: str, choice: str | Stack | None, features: Tensor) -> None:
    module = model._get(head, model.heads, "head")
    if module.input_size != features.shape[-1]:
        raise ConfigError(
            f"head {head!r} reads features of {module.input_size}, but adapter {choice!r} gives {features.shape[-1]}; "
            "give head=[...], one a sample, with a head made for each (None for none)."
        )
