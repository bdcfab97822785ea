"""WavLM (Chen et al., JSTSP 2022): wav2vec 2.0's modules and a gated relative position bias.

The bias (section III-B; the gate is that of Chi et al., XLM-E) is computed by the first layer and shared by all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from speech_adapters.encoders.families.wav2vec2 import Model, Wav2Vec2
from speech_adapters.encoders.stock import StockAttention


class Attention(StockAttention):
    """``WavLMAttention``; ``rel_attn_embed`` and ``compute_bias`` stand in the first layer's alone."""

    gru_rel_pos_linear: nn.Linear
    gru_rel_pos_const: Tensor
    rel_attn_embed: nn.Embedding
    compute_bias: Callable[[int, int], Tensor]


class WavLM(Wav2Vec2):
    """WavLM; its Base and Large were pre-trained on differently prepared waveforms."""

    model_type = "wavlm"
    title = "WavLM"
    position_names = ("rel_attn_embed", "gru_rel_pos")
    settings = (*Wav2Vec2.settings, "max_bucket_distance")
    #: The authors: https://github.com/microsoft/unilm/issues/708.
    normalize: ClassVar[Mapping[str, bool]] = {"group": False, "layer": True}

    def position_bias(self, model: Model, frames: int) -> Tensor | None:
        first = cast(Attention, self.part(model.encoder.layers[0], "attention"))
        # Contiguous: it comes with the heads innermost, which makes every layer's use of it many times slower.
        return first.compute_bias(frames, frames).unsqueeze(0).contiguous()

    def position_gate(self, layer: nn.Module, hidden: Tensor) -> Tensor | None:
        attention = cast(Attention, self.part(layer, "attention"))
        batch, frames, _ = hidden.shape
        heads = hidden.view(batch, frames, attention.num_heads, -1).transpose(1, 2)
        projected = attention.gru_rel_pos_linear(heads).view(batch, attention.num_heads, frames, 2, 4).sum(-1)
        gate_a, gate_b = torch.sigmoid(projected).chunk(2, dim=-1)
        return gate_a * (gate_b * attention.gru_rel_pos_const - 1.0) + 2.0

    def fault(self, config: Any, shapes: Mapping[str, tuple[int, ...]]) -> str | None:
        fault = super().fault(config, shapes)
        if fault is None and not config.num_buckets // 4 < config.max_bucket_distance:
            return "max_bucket_distance must be above a quarter of num_buckets"
        return fault

    @torch.no_grad()
    def quieten_positions(self, model: Model, scale: float) -> None:
        super().quieten_positions(model, scale)
        cast(Attention, self.part(model.encoder.layers[0], "attention")).rel_attn_embed.weight.zero_()
