"""Our encoder forward against transformers' own: time and memory of forward and backward, in the same run.

    python benchmarks/encoder_forward.py   # WavLM base size, this machine's device
    python benchmarks/encoder_forward.py --family hubert --seconds 10 --batch 4 --precision bf16

Weights are random: speed does not depend on them. Memory is measured on a GPU alone.
"""

from __future__ import annotations

import torch
from timing import Record, in_turns, parse, parser_of, the_device
from transformers import AutoConfig, AutoModel

from speech_adapters.encoders import encode
from speech_adapters.runs.environment import peak_memory_bytes, reset_peak_memory


def main() -> None:
    parser = parser_of(__doc__, rounds=5)
    parser.add_argument("--family", default="wavlm", choices=["wav2vec2", "hubert", "wavlm"])
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
    forwards = {"stock": model, "ours": lambda waves: encode(model, waves)}

    def step(name: str) -> None:
        model.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=arguments.precision == "bf16"):
            output = forwards[name](waveforms)
        output.last_hidden_state.float().square().mean().backward()

    rows = in_turns({name: (lambda name=name: step(name)) for name in forwards}, arguments.rounds, device)
    for name, row in rows.items():
        row["faster"] = 1 / row["ratio"]
        if device.type == "cuda":
            reset_peak_memory(device)
            step(name)
            row["peak_gib"] = peak_memory_bytes(device) / 2**30
            row["peak_ratio"] = row["peak_gib"] / rows["stock"]["peak_gib"]
    shape = f"{arguments.batch} x {arguments.seconds:g} s, {arguments.layers} layers, {arguments.precision}"
    record.add(f"{arguments.family}, forward and backward, {shape}", rows, "stock")
    record.write()


if __name__ == "__main__":
    main()
