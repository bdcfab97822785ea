"""What an adapter costs at inference: a forward with each method against the bare base, folded LoRA, int8.

    python benchmarks/inference.py                                 # WavLM Base size, random weights
    python benchmarks/inference.py --encoder tiny-wavlm --methods lora bottleneck --rounds 15

"folded" is LoRA folded into the base's weights, "int8" the base held in eight bits. "base again" is the base a second
time: how far its ratio lies from one is what the machine blurs.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from material import encoder_of
from timing import Record, in_turns, parse, parser_of, the_device

from speech_adapters import SpeechAdapterModel
from speech_adapters.adapters import PRESETS, Bottleneck
from speech_adapters.precision import autocast

DEFAULT = ["base again", "bottleneck", "houlsby", "lora", "folded", "prefix", "l-frozen", "elp", "int8"]


def forward_of(name: str, encoder: str, waveforms: torch.Tensor, precision: str) -> Callable[[], object]:
    """The forward of a method; "base" for none."""
    model = SpeechAdapterModel(encoder_of(encoder))
    if name == "int8":
        model.encoder.quantize("int8")
    elif name == "bottleneck":
        model.add_adapter("a", Bottleneck())
    elif not name.startswith("base"):
        model.add_adapter("a", "lora" if name == "folded" else name)
    if name == "folded":
        model.fold_adapter("a")
    model.to(waveforms.device).eval()

    def forward() -> None:
        with autocast(waveforms.device, precision):
            model(waveforms)

    return forward


@torch.inference_mode()
def main() -> None:
    parser = parser_of(__doc__, rounds=9)
    parser.add_argument("--encoder", default="base", help="packaged name, folder or hub id, or base")
    parser.add_argument("--methods", nargs="+", default=DEFAULT, choices=[*DEFAULT, *PRESETS])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    arguments, device = parse(parser, {"encoder": "tiny-wavlm", "seconds": 1.0}), the_device()
    record = Record(arguments, device)
    waveforms = torch.randn(arguments.batch, int(arguments.seconds * 16_000), device=device)
    ways = {
        name: forward_of(name, arguments.encoder, waveforms, arguments.precision)
        for name in ("base", *arguments.methods)
    }
    rows = in_turns(ways, arguments.rounds, device)
    shape = f"{arguments.batch} x {arguments.seconds:g} s, {arguments.precision}"
    record.add(f"{arguments.encoder}, forward, {shape}", rows, "base")
    record.write()


if __name__ == "__main__":
    main()
