"""What a forward of the model returns."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Any

from torch import Tensor


@dataclass
class ModelOutput:
    """Figures by attribute, by name (``output["logits"]``) or, as in ``transformers``, by number among those there
    are: ``output[0]`` is the loss when targets were given, and the logits come next.

    Attributes:
        loss: scalar, when targets were given.
        logits: the active head's output, None without a head.
        embedding: (B, E) of a speaker head, else None.
        last_hidden_state: (B, T, D) of the encoder; hidden_states: L + 1 tensors (B, T, D).
        features: (B, T, F), what the head reads (the L-adapters' sum, or the last hidden state).
        frame_lengths: (B,) real frames of the features; mask: (B, T) True on them, or None when nothing is padded.
        hidden_lengths: (B,) real frames of the hidden states; others than the features' behind an output adapter.
        cnn_output: (B, T, C) before the feature projection; None when the run started later.
        attention: what Fuse and Route weighed their members with, by "name.site": (B, T, N), or (B, 1, N) of one gate
            per utterance; T includes pseudo frames, of which ``pseudo_frames`` stand before the real ones.

    With one adapter per sample, ``features`` is a list of (T, F) where adapters differ in F, and with one head per
    sample ``logits`` and ``embedding`` are lists, None for a sample without.
    """

    last_hidden_state: Tensor
    hidden_states: tuple[Tensor, ...]
    features: Tensor | list[Tensor]
    frame_lengths: Tensor
    mask: Tensor | None
    logits: Tensor | list[Tensor | None] | None = None
    loss: Tensor | None = None
    embedding: Tensor | list[Tensor | None] | None = None
    cnn_output: Tensor | None = None
    attention: dict[str, Tensor] = field(default_factory=dict)
    pseudo_frames: int | Tensor = 0
    hidden_lengths: Tensor | None = None

    def keys(self) -> tuple[str, ...]:
        """Names of the tensors there are: loss and logits first, then the others."""
        first = ("loss", "logits", "embedding")
        rest = (f.name for f in fields(self) if f.name not in (*first, "pseudo_frames", "hidden_lengths"))
        return tuple(name for name in (*first, *rest) if getattr(self, name) is not None and getattr(self, name) != {})

    def to_tuple(self) -> tuple[Any, ...]:
        """The tensors there are, in the order of :meth:`keys`."""
        return tuple(getattr(self, name) for name in self.keys())

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __getitem__(self, key: str | int | slice) -> Any:
        if not isinstance(key, str):
            return self.to_tuple()[key]
        if key not in self.keys():
            raise KeyError(f"{key!r}; this output has {', '.join(self.keys())}")
        return getattr(self, key)
