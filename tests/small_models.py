"""Small models with adapters, one row per method, and the batch that the adapter tests share."""

from __future__ import annotations

import torch
from small_encoders import small_encoder, stock_model

from speech_adapters.adapters import (
    IA3,
    PRESETS,
    AdaLoRA,
    AdapterConfig,
    Bottleneck,
    CodeAdapter,
    Combine,
    Compacter,
    LAdapter,
    LoRA,
    LoRAXS,
    PAdapter,
    PiSSA,
)  # fmt: skip
from speech_adapters.encoders import Encoder
from speech_adapters.heads.ctc import CTCHead
from speech_adapters.model import SpeechAdapterModel

ALL_TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj", "intermediate_dense", "output_dense")

#: Every preset, and what the presets leave out. A new method is a new row.
METHODS: dict[str, str | AdapterConfig] = {
    **{name: name for name in PRESETS},
    "lora+l": Combine(parts=(LoRA(), LAdapter())),
    "lora-all": LoRA(rank=4, targets=ALL_TARGETS, dropout=0.1),
    "dora-two": LoRA(variant="dora", targets=("k_proj", "output_dense"), layers=(0, -1)),
    "rslora-two": LoRA(variant="rslora", targets=("k_proj", "out_proj")),
    "ia3-all": IA3(targets=ALL_TARGETS),
    "pissa-all": PiSSA(rank=4, targets=ALL_TARGETS, layers=(-1,)),
    "lora-xs": LoRAXS(rank=8),
    "adalora-ffn": AdaLoRA(rank=2, init_rank=4, targets=("intermediate_dense", "output_dense")),
    "compacter-pp": Compacter(sites=("feed_forward",), layers="top-1"),
    "code": CodeAdapter(),
    "p-append": PAdapter(side="append"),
    "p-proj": PAdapter(where="proj_out"),
    "p-proj-append": PAdapter(where="proj_out", side="append"),
    "attention-parallel": Bottleneck(
        sites=("attention",), placement="parallel", activation="gelu", layers=(0, -1), dropout=0.1
    ),
    "between-layers": Bottleneck(sites=("layer",), activation="swish", size=8),
    "sizes-by-layer": Bottleneck(size=(4, 12), layers=(0, -1)),
    "near-zero": Bottleneck(init_std=0.02, activation="tanh", size=8),
}

#: Targets of the batch's two utterances.
TARGETS = torch.tensor([[5, 6, 7, 8], [9, 9, -100, -100]])


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Two utterances (2, 6400), the second one padded, and their lengths in samples."""
    generator = torch.Generator().manual_seed(1)
    waveforms, lengths = torch.randn(2, 6400, generator=generator), torch.tensor([6400, 4800])
    waveforms[1, 4800:] = 0
    return waveforms, lengths


def small_model(
    family: str = "wavlm", style: str = "pre-norm", method: str | None = None, head: bool = False, **changes
) -> SpeechAdapterModel:
    """A small random encoder with adapter "a" (a row of METHODS) and head "asr", ready to train."""
    model = SpeechAdapterModel(small_encoder(family, style, **changes))
    torch.manual_seed(2)
    if method is not None:
        model.add_adapter("a", METHODS[method])
    if head:
        model.add_head("asr", CTCHead())
    if method is not None or head:
        model.train_adapter(*model.active_adapters, head="asr" if head else None)
    return model


def parameters(model: SpeechAdapterModel) -> list[torch.nn.Parameter]:
    """What trains."""
    return [p for group in model.parameter_groups().values() for p in group]


def shake(model: SpeechAdapterModel, std: float = 0.02) -> SpeechAdapterModel:
    """Move the active adapters and head away from their start, as training would; returns the model in eval mode."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in parameters(model):
            parameter += std * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def meta_model(family: str, style: str, layers: int, width: int) -> SpeechAdapterModel:
    """A published geometry without memory behind it."""
    with torch.device("meta"):
        stock = stock_model(
            family, style, layers, width, intermediate_size=4 * width, num_attention_heads=width // 64,
            conv_dim=(512,) * 7, conv_kernel=(10, 3, 3, 3, 3, 2, 2), conv_stride=(5, 2, 2, 2, 2, 2, 2),
            num_feat_extract_layers=7, num_conv_pos_embeddings=128, num_conv_pos_embedding_groups=16,
        )  # fmt: skip
    encoder = Encoder(stock.to("meta"), "meta")
    encoder._fingerprints = ("meta",)  # there are no weights to take it from
    return SpeechAdapterModel(encoder)


def counts(model: SpeechAdapterModel, config) -> dict[str, float]:
    with torch.device("meta"):
        model.add_adapter("a", config)
    counted = model.count_parameters()
    model.delete_adapter("a")
    return counted


def two_updates(model: SpeechAdapterModel, rate: float) -> None:
    """Train on the batch; the second update's gradients stay: in the first some are zero by design."""
    optimizer = torch.optim.SGD(parameters(model), rate)
    for _ in range(2):
        optimizer.zero_grad()
        model(*batch(), targets=TARGETS).loss.backward()
        optimizer.step()
