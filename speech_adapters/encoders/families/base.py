"""What a family of encoders says of itself: names, sizes, front-end, positions, layers, checkpoints.

Everything else in the package speaks of parts by the names below and never of a family's attributes.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any, ClassVar, TypeVar, cast

from torch import Tensor, nn

from speech_adapters.encoders.attention import Relative, self_attention
from speech_adapters.encoders.plan import Frames, Plan, Site
from speech_adapters.encoders.stock import StockAttention, StockModel
from speech_adapters.encoders.weights import read_tensors
from speech_adapters.errors import CheckpointError

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
        norms: the LayerNorms of a layer that methods on LayerNorms and biases act on; projections: its linear maps,
            by the names that targets have. A family whose layers have more of them names these too.
        position_names: what the names of tensors of learnt relative positions hold; they stay frozen in fine-tuning.
        processor: class of ``transformers`` that joins the feature extractor and a recogniser's tokenizer.
        hears_normalized: whether the family's extractor heeds ``do_normalize``; else waveforms are heard as they are.
        may_lack: tensors that no forward of the frozen encoder needs, and a checkpoint may lack.
        settings: of ``config.json``, those that change what the encoder computes and that no tensor's shape tells;
            adapter_settings: those of an output adapter, where there is one (``add_adapter``).
        feed_forward_scale: factor on the feed-forward's output before it is added to the residual.
    """

    model_type: ClassVar[str]
    title: ClassVar[str]
    layers: ClassVar[str]
    names: ClassVar[Mapping[str, str]]
    norms: ClassVar[tuple[str, ...]] = ("layer_norm", "final_layer_norm")
    projections: ClassVar[tuple[str, ...]] = (
        "q_proj", "k_proj", "v_proj", "out_proj", "intermediate_dense", "output_dense"
    )  # fmt: skip
    position_names: ClassVar[tuple[str, ...]] = ()
    processor: ClassVar[str] = "Wav2Vec2Processor"
    hears_normalized: ClassVar[bool] = True
    may_lack: ClassVar[tuple[str, ...]] = ()
    settings: ClassVar[tuple[str, ...]] = ()
    adapter_settings: ClassVar[tuple[str, ...]] = ()
    feed_forward_scale: ClassVar[float] = 1.0

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

    def output_size(self, config: Any) -> int:
        """Width of what the encoder hands on."""
        return int(config.hidden_size)

    def output_lengths(self, config: Any, frames: Samples) -> Samples:
        """Frames that the encoder hands on, of the layers' ``frames``; a number or a tensor (B,)."""
        return frames

    def output_stride(self, config: Any) -> int:
        """Samples from one frame that the encoder hands on to the next."""
        return self.stride(config)

    def run_output_adapter(self, model: Any, hidden: Tensor, frames: Tensor | None) -> Tensor:
        """What a checkpoint with ``add_adapter`` makes of the layers' output, (B, T, D) -> (B, T', D').

        Args:
            frames: (B,) real frames, or None when nothing is padded; what is behind them changes nothing before.
        """
        return hidden

    def position_bias(self, model: Any, frames: int) -> Tensor | None:
        """A relative position bias (1, heads, T, T) that all layers share, or None."""
        return None

    def position_gate(self, layer: nn.Module, hidden: Tensor) -> Tensor | None:
        """A layer's factor (B, heads, T, 1) on it, of the attention's input (B, T, D)."""
        return None

    def relative(self, layer: nn.Module) -> Relative | None:
        """What makes a layer's own position bias of its queries, or None."""
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
        """One layer (B, T, D) -> (B, T, D), adapters at their places; ``mask`` is (B, T)."""
        layer, layer_input = plan.layer(index, layer), hidden
        hidden = self.attend(layer, index, hidden, mask, bias, plan, pre_norm)
        hidden = self.feed_forward(layer, index, hidden, mask, plan, pre_norm)
        hidden = self.after_layer(layer, hidden, pre_norm)
        return plan.site("layer", index, Site(layer_input, hidden, mask))

    def attend(
        self,
        layer: nn.Module,
        index: int,
        hidden: Tensor,
        mask: Tensor | None,
        bias: Tensor | None,
        plan: Plan,
        pre_norm: bool,
    ) -> Tensor:
        """The attention sub-layer, its LayerNorm and its residual: (B, T, D) -> (B, T, D)."""
        norm = plan.norm(index, "layer_norm", self.part(layer, "layer_norm"))
        attention = cast(StockAttention, self.part(layer, "attention"))

        def run(name: str, frames: Tensor) -> Tensor:
            return self.run_part(layer, index, name, frames, mask, plan)

        def project(frames: Tensor) -> tuple[Tensor, Tensor]:
            frames = frames.to(hidden.dtype)
            normed = norm(frames) if pre_norm else frames
            # No mask: these frames stand beside the utterances, not in them.
            key, value = (self.run_part(layer, index, name, normed, None, plan) for name in ("k_proj", "v_proj"))
            return key, value

        normed = norm(hidden) if pre_norm else hidden
        attention_mask = None if mask is None else mask[:, None, None, :]
        gate = None if bias is None else self.position_gate(layer, normed)
        prefix = plan.prefix(index, project)
        dropout = _rate(attention.dropout) if attention.training else 0.0
        relative = self.relative(layer)
        output = self_attention(
            normed, run, attention.num_heads, attention_mask, bias, gate, prefix, dropout, relative
        )
        output = self._drop(layer, "dropout", output)
        hidden = hidden + plan.site("attention", index, Site(normed, output, mask, hidden, norm))
        return hidden if pre_norm else norm(hidden)

    def feed_forward(
        self, layer: nn.Module, index: int, hidden: Tensor, mask: Tensor | None, plan: Plan, pre_norm: bool
    ) -> Tensor:
        """The feed-forward sub-layer, its LayerNorm and its residual: (B, T, D) -> (B, T, D)."""
        norm = plan.norm(index, "final_layer_norm", self.part(layer, "final_layer_norm"))
        normed = norm(hidden) if pre_norm else hidden
        output = self.run_part(layer, index, "intermediate_dense", normed, mask, plan)
        output = self.run_part(layer, index, "intermediate_act", output, mask, plan)
        output = self._drop(layer, "intermediate_dropout", output)
        output = self.run_part(layer, index, "output_dense", output, mask, plan)
        output = self._drop(layer, "output_dropout", output)
        if self.feed_forward_scale != 1.0:
            output = output * self.feed_forward_scale
        hidden = hidden + plan.site("feed_forward", index, Site(normed, output, mask, hidden, norm))
        return hidden if pre_norm else norm(hidden)

    def run_part(
        self, layer: nn.Module, index: int, name: str, frames: Tensor, mask: Tensor | None, plan: Plan
    ) -> Tensor:
        """A projection or activation of a layer, with what adapters add to it."""
        return plan.site(name, index, Site(frames, self.part(layer, name)(frames), mask))

    def _drop(self, layer: nn.Module, name: str, hidden: Tensor) -> Tensor:
        return nn.functional.dropout(hidden, _rate(_inside(layer, self.names[name])), layer.training)

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

    def read_config(self, folder: Path) -> Any:
        """The stock model's configuration, with ``model_type`` and ``hidden_size``, of ``config.json`` in a folder."""
        from transformers import AutoConfig

        return AutoConfig.from_pretrained(folder, local_files_only=True)

    def load(self, folder: Path, **options: Any) -> tuple[nn.Module, dict[str, Any]]:
        """The stock encoder in ``folder``, and ``transformers``' report of missing, mismatched and unexpected keys.

        Tensors of ``may_lack`` are zero where a checkpoint lacks them, and no longer reported as missing.
        """
        from transformers import MODEL_MAPPING

        config = self.read_config(folder)
        stock = cast(type[Any], MODEL_MAPPING[type(config)])
        model, report = from_weights(stock, folder, config, **options)
        lacking = set(self.may_lack) & set(report["missing_keys"])
        for name in lacking:  # else they would be drawn anew, and be another encoder, in each process
            nn.init.zeros_(model.get_parameter(name))
        return model, {**report, "missing_keys": set(report["missing_keys"]) - lacking}


def from_weights(
    stock: type[Any], folder: Path, config: Any, wanted: Callable[[str], bool] = lambda name: True, **options: Any
) -> tuple[nn.Module, dict[str, Any]]:
    """A stock model with the wanted weights of a folder, and ``transformers``' report.

    It is not given the folder: it would add a ``peft`` adapter that lies beside the weights to the frozen base. The
    configuration's word on attention is passed over, since :mod:`~speech_adapters.encoders.forward` has its own.

    Raises:
        CheckpointError: weights that are whole or complex numbers: codes of something quantised, say.
    """
    weights = read_tensors(folder, wanted)
    for name, tensor in weights.items():
        if tensor.ndim > 1 and not tensor.is_floating_point():
            raise CheckpointError(
                f"{folder}: {name} holds {str(tensor.dtype).removeprefix('torch.')}, not weights; give the checkpoint "
                "that this one was made from."
            )
    made: tuple[nn.Module, dict[str, Any]] = stock.from_pretrained(
        None, config=config, state_dict=weights, output_loading_info=True, attn_implementation="eager", **options
    )
    return made


def convolved(frames: Samples, kernel: int, stride: int, padding: int) -> Samples:
    """Frames behind a convolution over so many; a number or a tensor (B,)."""
    return (frames + 2 * padding - kernel) // stride + 1


def count_layers(shapes: Iterable[str], pattern: str) -> int:
    """How many different numbers stand in the place of ``*`` in names of tensors: ``encoder.layers.*.``, say."""
    compiled = re.compile(r"(?:^|\.)" + re.escape(pattern).replace(r"\*", r"(\d+)"))
    return len({match[1] for name in shapes if (match := compiled.search(name))})


def _rate(dropout: nn.Dropout | float) -> float:
    return dropout.p if isinstance(dropout, nn.Dropout) else dropout


def _inside(module: nn.Module, name: str) -> Any:
    return reduce(getattr, name.split("."), module)
