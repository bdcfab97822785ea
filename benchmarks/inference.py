"""What an adapter costs at inference: a forward with each method against the bare base, folded LoRA, int8.

    python benchmarks/inference.py                                 # WavLM Base size, random weights
    python benchmarks/inference.py --encoder tiny-wavlm --methods lora bottleneck --runs 15

Forwards take turns in the same process; medians of CPU seconds (``process_time``) on a CPU, of wall seconds on a GPU,
and the median over rounds of the ratio to the base's forward of the same round: neighbours in time share what else the
machine does. "folded" is LoRA folded into the base's weights, "int8" the base held in eight bits.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from step import clock, encoder_of

from speech_adapters import SpeechAdapterModel
from speech_adapters.adapters import PRESETS

DEFAULT = ["bottleneck", "houlsby", "lora", "folded", "prefix", "l-frozen", "elp", "int8"]


def forward_of(name: str, arguments: argparse.Namespace, waveforms: torch.Tensor) -> Callable[[], object]:
    """The forward of a method; "base" for none."""
    model = SpeechAdapterModel(encoder_of(arguments.encoder))
    if name == "int8":
        model.encoder.quantize("int8")
    elif name == "bottleneck":
        from speech_adapters.adapters import Bottleneck

        model.add_adapter("a", Bottleneck())
    elif name != "base":
        model.add_adapter("a", "lora" if name == "folded" else name)
    if name == "folded":
        model.fold_adapter("a")
    model.to(waveforms.device).eval()
    return lambda: model(waveforms)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default="base", help="packaged name, folder or hub id, or base")
    parser.add_argument("--methods", nargs="+", default=DEFAULT, choices=["bottleneck", "folded", "int8", *PRESETS])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the figures there")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    waveforms = torch.randn(arguments.batch, int(arguments.seconds * 16_000), device=device)
    forwards = {name: forward_of(name, arguments, waveforms) for name in ("base", *arguments.methods)}
    times: dict[str, list[float]] = {name: [] for name in forwards}
    for _ in range(arguments.runs + 1):
        for name, forward in forwards.items():
            started = clock(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=arguments.precision == "bf16"):
                forward()
            times[name].append(clock(device) - started)
    print(
        f"{arguments.encoder}, {arguments.batch} x {arguments.seconds:g} s, {arguments.precision}, {device.type}, "
        f"{arguments.threads} thread(s), median of {arguments.runs} interleaved"
    )
    rows = {}
    for name, own in times.items():
        ratio = statistics.median(mine / base for mine, base in zip(own[1:], times["base"][1:], strict=True))
        rows[name] = {"seconds": statistics.median(own[1:]), "of_base": ratio}
        print(f"  {name:14s} {rows[name]['seconds']:7.3f} s  {ratio - 1:+7.1%}", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
