"""Our encoder forward against transformers' own: time and memory of forward and backward, in the same run.

    python benchmarks/encoder_forward.py   # WavLM base size, this machine's device
    python benchmarks/encoder_forward.py --family hubert --seconds 10 --batch 4 --precision bf16

Two tables: the whole encoder, most of whose time is spent in modules that both run alike (CNN, feed-forward), and the
attention sub-layers of all layers alone, each with its LayerNorm and residual. Weights are random: speed does not
depend on them. Memory is measured on a GPU alone, above what the model itself takes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from timing import Record, Row, in_turns, parse, parser_of, the_device
from torch import Tensor
from transformers import AutoConfig, AutoModel

from speech_adapters.encoders import encode
from speech_adapters.encoders.families import family_of
from speech_adapters.encoders.plan import Plan
from speech_adapters.precision import autocast
from speech_adapters.runs.environment import peak_memory_bytes, reset_peak_memory

FRAMES_A_SECOND = 50


def main() -> None:
    parser = parser_of(__doc__, rounds=5)
    parser.add_argument("--family", default="wavlm", choices=["wavlm", "wav2vec2", "hubert"])
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=15.0, help="length of each utterance")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    arguments, device = parse(parser, {"layers": 2, "seconds": 1.0}), the_device()
    record = Record(arguments, device)
    model = AutoModel.from_config(AutoConfig.for_model(arguments.family, num_hidden_layers=arguments.layers))
    model = model.to(device).eval()
    model.feature_extractor.requires_grad_(False)  # as in training on a frozen CNN
    waveforms = torch.randn(arguments.batch, int(arguments.seconds * 16_000), device=device)
    frames = int(arguments.seconds * FRAMES_A_SECOND)
    hidden = torch.randn(arguments.batch, frames, model.config.hidden_size, device=device, requires_grad=True)
    parts: dict[str, dict[str, Callable[[], Tensor]]] = {
        "": {
            "stock": lambda: model(waveforms).last_hidden_state,
            "ours": lambda: encode(model, waveforms).last_hidden_state,
        },
        "attention alone, ": {
            "stock": lambda: stock_attention(model, hidden),
            "ours": lambda: attention(model, hidden),
        },
    }
    for part, forwards in parts.items():
        rows = compare(model, forwards, arguments.precision, arguments.rounds, device)
        shape = f"{arguments.batch} x {arguments.seconds:g} s, {arguments.layers} layers, {arguments.precision}"
        record.add(f"{arguments.family}, {part}forward and backward, {shape}", rows, "stock")
    record.write()


def attention(model: torch.nn.Module, hidden: Tensor) -> Tensor:
    """Our attention sub-layers, one after the other: (B, T, D) -> (B, T, D)."""
    family, plan = family_of(model.config), Plan()
    bias, pre_norm = family.position_bias(model, hidden.shape[1]), family.pre_norm(model.config)
    for index, layer in enumerate(family.layer_list(model)):
        hidden = family.attend(layer, index, hidden, None, bias, plan, pre_norm)
    return hidden


def stock_attention(model: torch.nn.Module, hidden: Tensor) -> Tensor:
    """The same as the stock layers run them."""
    bias = None
    for index, layer in enumerate(model.encoder.layers):
        if model.config.model_type == "wavlm":
            attended, _, bias = layer.attention(hidden, position_bias=bias, index=index)
        else:
            attended = layer.attention(hidden)[0]
        hidden = layer.layer_norm(hidden + layer.dropout(attended))
    return hidden


def compare(
    model: torch.nn.Module,
    forwards: dict[str, Callable[[], Tensor]],
    precision: str,
    rounds: int,
    device: torch.device,
) -> dict[str, Row]:
    """Forward and backward of each way, in turns."""

    def step(name: str) -> None:
        model.zero_grad(set_to_none=True)
        with autocast(device, precision):
            output = forwards[name]()
        output.float().square().mean().backward()

    rows = in_turns({name: (lambda name=name: step(name)) for name in forwards}, rounds, device)
    for name, row in rows.items():
        row["faster"] = 1 / row["ratio"]
        if device.type == "cuda":
            model.zero_grad(set_to_none=True)
            before = torch.cuda.memory_allocated(device)
            reset_peak_memory(device)
            step(name)
            peak = peak_memory_bytes(device)
            row["peak_gib"], row["above_gib"] = peak / 2**30, (peak - before) / 2**30
            row["peak_ratio"] = row["peak_gib"] / rows["stock"]["peak_gib"]
            row["above_ratio"] = row["above_gib"] / rows["stock"]["above_gib"]
    return rows


if __name__ == "__main__":
    main()
