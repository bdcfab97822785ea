"""data2vec-audio (Baevski et al., ICML 2022): wav2vec 2.0's modules with a stack of positional convolutions.

Stock data2vec lets each convolution but the first read what the one before made of the zeros behind an utterance; here
they are zero again before each, so that padding changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

from torch import Tensor, nn

from speech_adapters.encoders.families.wav2vec2 import Model, Wav2Vec2


class PositionalConvolutions(nn.Module):
    """``Data2VecAudioPositionalConvEmbedding``."""

    layers: Sequence[nn.Module]


class Data2VecAudio(Wav2Vec2):
    """data2vec-audio."""

    model_type = "data2vec-audio"
    title = "data2vec-audio"
    settings = tuple(
        name for name in Wav2Vec2.settings if name not in ("do_stable_layer_norm", "feat_extract_norm")
    )  # its class has one kind of layer
    #: facebook/data2vec-audio-base-10m; as in pre-training.
    normalize: ClassVar[Mapping[str, bool]] = {"layer": True}

    def pre_norm(self, config: Any) -> bool:
        return False  # whatever its configuration says

    def group_norm(self, config: Any) -> bool:
        return False  # likewise

    def positions(self, model: Model, hidden: Tensor, mask: Tensor | None) -> Tensor:
        signal = hidden.transpose(1, 2)
        for layer in cast(PositionalConvolutions, model.encoder.pos_conv_embed).layers:
            signal = layer(signal)
            if mask is not None:
                signal = signal.masked_fill(~mask.unsqueeze(1), 0)
        return signal.transpose(1, 2)
