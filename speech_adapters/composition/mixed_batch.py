"""One adapter per sample: ``model(waveforms, adapter=["a", "b", None, ...])`` in one pass.

The batch is sorted by adapter, run once under :class:`~speech_adapters.composition.mixed_hooks.MixedHooks`, and put
back into its order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from speech_adapters.adapters.base import AdapterModule
from speech_adapters.adapters.hooks import AdapterPlan, Hooks
from speech_adapters.composition.blocks import Composition, Stack
from speech_adapters.composition.mixed_hooks import Group, Kind, MixedHooks
from speech_adapters.composition.registry import Registry
from speech_adapters.composition.weight_averaging import shape_of
from speech_adapters.encoders.forward import EncoderOutput
from speech_adapters.errors import ConfigError

Choice = str | Stack | None

#: Waveforms or cached activations, and what goes with them; see ``encoders.forward.encode``.
Inputs = dict[str, Any]

#: Hooks and inputs -> the encoder's output under those hooks, with ``frame_lengths`` always given, and their plan.
Run = Callable[[Hooks, Inputs], tuple[EncoderOutput, AdapterPlan]]


def mixed_forward(
    run: Run, mixer: Mixer, registry: Registry, inputs: Inputs, choices: Sequence[Choice]
) -> tuple[EncoderOutput, list[Tensor]]:
    """The encoder's output, and what each sample's head reads, (T, F) with F its adapter's."""
    check_choices("adapter", choices, inputs)
    encoder, samples = registry.encoder, _by_sample(inputs)
    order, mixed = mixer.sort(choices, registry.adapters_by_name, encoder.num_layers)
    index = torch.tensor(order, device=encoder.device)
    back = index.argsort()
    output, _ = run(mixed, {**inputs, **{key: value[index] for key, value in samples.items()}})
    rows = mixed.features(encoder, output)
    assert output.frame_lengths is not None
    if len({len(row) for row in rows}) > 1:
        raise ConfigError(
            f"{encoder.name}: adapters that read the layers and adapters that read its output adapter's fewer frames "
            "cannot share a batch; give them batches of their own."
        )

    def restored(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor[back]

    in_order = EncoderOutput(
        output.last_hidden_state[back],
        tuple(state[back] for state in output.hidden_states),
        output.frame_lengths[back],
        restored(output.mask),
        restored(output.cnn_output),
        restored(output.output_lengths),
        restored(output.output_mask),
    )
    return in_order, [rows[place] for place in back.tolist()]


def scored_by_sample(
    registry: Registry, heads: Sequence[str | None], choices: Sequence[Choice], rows: Sequence[Tensor], lengths: Tensor
) -> tuple[list[Tensor | None], list[Tensor | None]]:
    """Each sample's logits and embedding of its own head, None without one.

    Args:
        rows: each sample's features, (T, F).
        lengths: (B,) real frames.
    """
    logits: list[Tensor | None] = [None] * len(rows)
    embeddings: list[Tensor | None] = [None] * len(rows)
    for name in dict.fromkeys(name for name in heads if name is not None):
        own = [place for place, head in enumerate(heads) if head == name]
        for place in own:
            check_width(registry, name, choices[place], rows[place])
        scored = registry.head(name)(torch.stack([rows[place] for place in own]), lengths[own])
        for number, place in enumerate(own):
            logits[place] = scored.logits[number]
            embeddings[place] = None if scored.embedding is None else scored.embedding[number]
    return logits, embeddings


def check_choices(word: str, choices: Sequence[Choice], inputs: Inputs) -> None:
    """Raise a ConfigError unless there is one choice for each sample of a batch that runs the layers."""
    for key in ("hidden_states", "last_hidden_state"):
        if inputs.get(key) is not None:
            raise ConfigError(
                f"{key}: a choice for each sample runs the layers; start from waveforms, cnn_output or hidden, or "
                "give the samples of each adapter a batch of their own."
            )
    if not (samples := _by_sample(inputs)):
        raise ConfigError(f"{word}=[...]: no samples were given; start from waveforms, cnn_output or hidden.")
    batch = len(next(iter(samples.values())))
    if isinstance(choices, str) or len(choices) != batch:
        raise ConfigError(f"{word}={choices!r}: give one choice for each of the {batch} samples.")


def _by_sample(inputs: Inputs) -> dict[str, Tensor]:
    """The inputs that have a row for each sample: all tensors but the one vector that hides frames."""
    return {key: value for key, value in inputs.items() if isinstance(value, Tensor) and key != "mask_embedding"}


def check_width(registry: Registry, head: str, choice: str | Composition | None, features: Tensor) -> None:
    """Raise a ConfigError for a head of another width than the features (..., F) of one sample or branch."""
    size = registry.head(head).input_size
    if size != features.shape[-1]:
        raise ConfigError(
            f"head {head!r} reads features of {size}, but adapter {choice!r} gives {features.shape[-1]}; "
            "give head=[...], one per sample, with a head made for each (None for none)."
        )


_KEPT = 8
"""Kinds whose stacked weights are kept: the one or few that a loop uses over and over. Where each batch brings another
mix of adapters, what has been stacked does not come again."""


class Mixer:
    """Sorts batches by adapter, and keeps the latest kinds' stacked weights between them."""

    def __init__(self) -> None:
        self._kinds: dict[tuple[int, ...], Kind] = {}  # the latest used last

    def sort(
        self, choices: Sequence[Choice], adapters: Mapping[str, AdapterModule], layers: int
    ) -> tuple[list[int], MixedHooks]:
        """The order (a permutation of the batch) in which ``MixedHooks`` expects the samples.

        Raises:
            ConfigError: no such adapter, a composition other than Stack, fine-tuned layers.
        """
        modules: dict[Choice, list[AdapterModule]] = {}
        for choice in choices:
            if choice is not None and choice not in modules:
                modules[choice] = _modules(choice, adapters, layers)
        kinds: dict[str, list[Choice]] = {}
        for choice, stack in modules.items():
            shapes = [shape_of(module.config.to_dict(), dropout=module.training) for module in stack]
            kinds.setdefault(repr(shapes), []).append(choice)
        order: list[int] = []
        groups = []
        for members in kinds.values():
            members = sorted(members, key=repr)
            indices = [[i for i, choice in enumerate(choices) if choice == member] for member in members]
            key = tuple(id(module) for member in members for module in modules[member])
            kind = self._kinds.pop(key, None) or Kind([modules[member] for member in members])
            self._kinds[key] = kind
            groups.append(Group(kind, len(order), [len(own) for own in indices]))
            order += [i for own in indices for i in own]
        order += [i for i, choice in enumerate(choices) if choice is None]
        while len(self._kinds) > max(_KEPT, len(groups)):
            del self._kinds[next(iter(self._kinds))]
        return order, MixedHooks(groups, len(choices))

    def __deepcopy__(self, memo: dict[int, Any]) -> Mixer:
        return Mixer()

    def clear(self) -> None:
        """Forget all stacked weights."""
        self._kinds.clear()


def _modules(choice: Choice, adapters: Mapping[str, AdapterModule], layers: int) -> list[AdapterModule]:
    members = choice.members if isinstance(choice, Stack) else (choice,)
    names = [member for member in members if isinstance(member, str)]
    if len(names) < len(members):
        raise ConfigError(f"adapter={choice!r}: a sample takes an adapter's name, a Stack of names, or None.")
    for name in names:
        if name not in adapters:
            raise ConfigError(f"no adapter {name!r}; there are: {', '.join(adapters) or 'none'}.")
        if any(adapters[name].layer(index) is not None for index in range(layers)):
            raise ConfigError(f"adapter {name!r} replaces whole layers, which a mixed batch cannot; run it by itself.")
    return [adapters[name] for name in names]
