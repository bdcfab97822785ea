"""What a family of encoders says of itself: names, sizes, front-end, positions, layers, checkpoints.

Everything else in the package speaks of parts by the names below and never of a family's attributes.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any, ClassVar, TypeVar, cast

from torch import Tensor, nn

from speech_adapters.encoders.attention import self_attention
from speech_adapters.encoders.plan import Frames, Plan, Site
from speech_adapters.encoders.stock import StockAttention, StockModel

#: A number of samples, or one per utterance (B,).
Samples = TypeVar("Samples", int, Tensor)

#: The parts of a layer that have a name of ours: what a site, a target or a saved tensor is called in every family.
PARTS = (
    "attention", "q_proj", "k_proj", "v_proj", "out_proj", "layer_norm",
    "intermediate_dense", "intermediate_act", "output_dense", "final_layer_norm",
)  # fmt: skip


class Family(ABC):
    """A family; it holds no weights, and its methods are given the stock model.

    Attributes:
        model_type: of ``config.json``; title: the name in the field.
        layers: name of the list of layers inside the stock model.
        names: each of ``PARTS``, and "dropout" (after the attention), "intermediate_dropout" and "output_dropout", by
            its name inside a layer. A dropout may be a module or a rate.
        position_names: what the names of tensors of learnt relative positions hold; they stay frozen in fine-tuning.
    """

    model_type: ClassVar[str]
    title: ClassVar[str]
    layers: ClassVar[str]
    names: ClassVar[Mapping[str, str]]
    position_names: ClassVar[tuple[str, ...]] = ()

    # ------------------------------------------------------------------ sizes

    @abstractmethod
    def pre_norm(self, config: Any) -> bool:
        """True for layers with a LayerNorm before each sub-layer, False for one after."""

    def group_norm(self, config: Any) -> bool:
        """True when the front-end normalises over time: padding then changes what it computes."""
        return False

    def local_front_end(self, config: Any) -> bool:
        """True where a frame of the front-end's output depends on the samples of its receptive field alone."""
        return not self.group_norm(config)

    @abstractmethod
    def cnn_width(self, config: Any) -> int:
        """Channels C of the front-end's output."""

    @abstractmethod
    def intermediate_size(self, config: Any) -> int:
        """Width of the feed-forward's hidden layer."""

    @abstractmethod
    def layer_norm_eps(self, config: Any) -> float:
        """Of the layers' LayerNorms."""

    # ------------------------------------------------------------------ time

    @abstractmethod
    def frame_lengths(self, config: Any, samples: Samples) -> Samples:
        """Frames made of ``samples``; a number or a tensor (B,)."""

    @abstractmethod
    def receptive_field(self, config: Any) -> int:
        """Samples that the shortest usable utterance has."""

    @abstractmethod
    def stride(self, config: Any) -> int:
        """Samples from one frame to the next."""

    def first_centre(self, config: Any) -> int:
        """The sample on which the first frame is centred."""
        return self.receptive_field(config) // 2

    def max_samples(self, config: Any) -> int | None:
        """Samples of the longest utterance that has positions; None where there is no limit."""
        return None

    # ------------------------------------------------------------------ front-end and positions

    def front_end_name(self, config: Any) -> str:
        """What the front-end is, in two words."""
        return "group-norm CNN" if self.group_norm(config) else "layer-norm CNN"

    @abstractmethod
    def blocks(self, model: Any) -> Sequence[nn.Module]:
        """The blocks of the convolutional front-end: modules of the stock model."""

    @abstractmethod
    def run_block(self, block: nn.Module, signal: Tensor) -> Tensor:
        """(B, channels, time) -> (B, channels, time) through a block, or a copy of one."""

    @abstractmethod
    def convolution(self, block: nn.Module) -> nn.Conv1d:
        """A block's convolution."""

    @abstractmethod
    def front_end(self, model: Any, waveforms: Tensor, lengths: Tensor | None, plan: Plan) -> Tensor:
        """Waveforms (B, samples) -> (B, T, C), adapters beside the blocks included (site "cnn")."""

    def latents(self, model: Any, features: Tensor) -> Tensor:
        """The front-end's output (B, T, C) as the projection reads it: normalised where the family does that."""
        return features

    def project(self, model: Any, features: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, D)."""
        return features

    @abstractmethod
    def add_positions(self, model: Any, extended: Frames, real: int | Tensor) -> Tensor:
        """What the first layer reads, (B, T, D), of the projected frames.

        Args:
            extended: pseudo frames among them; padding is zero.
            real: how many real frames there are, in all or (B,).
        """

    def mask_embedding(self, model: Any) -> Tensor | None:
        """(D,) that stands for a hidden frame, or None where the family was never pre-trained by masking."""
        return None

    # ------------------------------------------------------------------ layers

    def layer_list(self, model: StockModel) -> Sequence[nn.Module]:
        """The layers, lowest first."""
        return cast(Sequence[nn.Module], model.get_submodule(self.layers))

    def part(self, layer: nn.Module, name: str) -> nn.Module:
        """One of ``PARTS`` of a layer, or of a copy of one."""
        return cast(nn.Module, _inside(layer, self.names[name]))

    @abstractmethod
    def final_norm(self, model: Any) -> nn.Module | None:
        """The LayerNorm behind the last layer of a pre-norm encoder, else None."""

    def position_bias(self, model: Any, frames: int) -> Tensor | None:
        """A relative position bias (1, heads, T, T) that all layers share, or None."""
        return None

    def position_gate(self, layer: nn.Module, hidden: Tensor) -> Tensor | None:
        """A layer's factor (B, heads, T, 1) on it, of the attention's input (B, T, D)."""
        return None

    def after_layer(self, layer: nn.Module, hidden: Tensor, pre_norm: bool) -> Tensor:
        """What a layer does after its feed-forward."""
        return hidden

    def run_layer(
        self,
        layer: nn.Module,
        index: int,
        hidden: Tensor,
        mask: Tensor | None,
        bias: Tensor | None,
        plan: Plan,
        pre_norm: bool,
    ) -> Tensor:
        """One transformer layer (B, T, D) -> (B, T, D), adapters at their places; ``mask`` is (B, T)."""
        layer, layer_input = plan.layer(index, layer), hidden
        attention_norm = plan.norm(index, "layer_norm", self.part(layer, "layer_norm"))
        final_norm = plan.norm(index, "final_layer_norm", self.part(layer, "final_layer_norm"))
        attention = cast(StockAttention, self.part(layer, "attention"))

        def run(name: str, frames: Tensor) -> Tensor:
            return plan.site(name, index, Site(frames, self.part(layer, name)(frames), mask))

        def project(frames: Tensor) -> tuple[Tensor, Tensor]:
            frames = frames.to(layer_input.dtype)
            normed = attention_norm(frames) if pre_norm else frames
            # No mask: these frames stand beside the utterances, not in them.
            key, value = (self.part(layer, name)(normed) for name in ("k_proj", "v_proj"))
            return plan.site("k_proj", index, Site(normed, key)), plan.site("v_proj", index, Site(normed, value))

        normed = attention_norm(hidden) if pre_norm else hidden
        attention_mask = None if mask is None else mask[:, None, None, :]
        gate = None if bias is None else self.position_gate(layer, normed)
        prefix = plan.prefix(index, project)
        dropout = attention.dropout if attention.training else 0.0
        output = self_attention(normed, run, attention.num_heads, attention_mask, bias, gate, prefix, dropout)
        output = self._drop(layer, "dropout", output)
        hidden = hidden + plan.site("attention", index, Site(normed, output, mask, hidden, attention_norm))
        if not pre_norm:
            hidden = attention_norm(hidden)

        normed = final_norm(hidden) if pre_norm else hidden
        output = run("intermediate_act", run("intermediate_dense", normed))
        output = run("output_dense", self._drop(layer, "intermediate_dropout", output))
        output = self._drop(layer, "output_dropout", output)
        hidden = hidden + plan.site("feed_forward", index, Site(normed, output, mask, hidden, final_norm))
        if not pre_norm:
            hidden = final_norm(hidden)
        hidden = self.after_layer(layer, hidden, pre_norm)
        return plan.site("layer", index, Site(layer_input, hidden, mask))

    def _drop(self, layer: nn.Module, name: str, hidden: Tensor) -> Tensor:
        found = _inside(layer, self.names[name])
        if isinstance(found, nn.Module):
            return cast(Tensor, found(hidden))
        return nn.functional.dropout(hidden, found, layer.training)

    # ------------------------------------------------------------------ checkpoints

    @abstractmethod
    def published_normalize(self, config: Any) -> bool | None:
        """``do_normalize`` of the family's published checkpoints, for folders without a word on it; None: unknown."""

    @abstractmethod
    def preprocessor(self, config: Any, normalize: bool) -> dict[str, Any]:
        """The content of ``preprocessor_config.json``."""

    @abstractmethod
    def fault(self, config: Any, shapes: Mapping[str, tuple[int, ...]]) -> str | None:
        """What in ``config.json`` does not belong to weights of these shapes, or None; nothing is built for it."""

    def load(self, folder: Path, **options: Any) -> tuple[nn.Module, dict[str, Any]]:
        """The stock encoder in ``folder``, and ``transformers``' report of missing and mismatched keys.

        Tensors that a checkpoint may lack are made the same in each process, and are no longer reported as missing.
        """
        from transformers import AutoModel

        return cast(
            tuple[nn.Module, dict[str, Any]], AutoModel.from_pretrained(folder, output_loading_info=True, **options)
        )


def count_layers(shapes: Iterable[str], pattern: str) -> int:
    """How many different numbers stand in the place of ``*`` in names of tensors: ``encoder.layers.*.``, say."""
    compiled = re.compile(r"(?:^|\.)" + re.escape(pattern).replace(r"\*", r"(\d+)"))
    return len({match[1] for name in shapes if (match := compiled.search(name))})


def _inside(module: nn.Module, name: str) -> Any:
    return reduce(getattr, name.split("."), module)
