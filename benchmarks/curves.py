"""How a training step grows with length, batch and the layers that hold adapters, and a forward with their number.

    python benchmarks/curves.py                                    # WavLM Base size, random weights
    python benchmarks/curves.py --encoder tiny-wavlm --lengths 2 8 32

Of each point LoRA's step stands against full fine-tuning's at that point (:mod:`step`), the forward of a batch that
mixes so many LoRA adapters against that of one (:mod:`mixed_batch`).
"""

from __future__ import annotations

import torch
from material import encoder_of
from mixed_batch import our_forwards
from step import METHODS, Step, parser
from timing import Record, Row, compared, in_turns, parse, the_device

from speech_adapters.adapters import LoRA


def main() -> None:
    own = parser()
    own.set_defaults(batch=1, seconds=4.0)
    own.add_argument("--lengths", nargs="+", type=float, default=[2.0, 4.0, 8.0, 16.0], help="in seconds")
    own.add_argument("--batches", nargs="+", type=int, default=[1, 2, 4, 8])
    own.add_argument("--layers", nargs="+", type=int, default=[1, 2, 4, 8, 12], help="topmost ones with adapters")
    own.add_argument("--adapters", nargs="+", type=int, default=[1, 2, 4, 8, 16], help="in a mixed batch of 16")
    quick = {"encoder": "tiny-wavlm", "seconds": 1.0, "lengths": [1.0], "batches": [1], "layers": [1], "adapters": [2]}
    arguments, device = parse(own, quick), the_device()
    record = Record(arguments, device)
    encoder = encoder_of(arguments.encoder, arguments.family)

    def steps(**changed: object) -> dict[str, Row]:
        own = type(arguments)(**{**vars(arguments), **changed})
        found = {method: Step(own, method, encoder, device) for method in ("full", "lora")}
        return in_turns(found, arguments.rounds, device)

    def against_full(points: dict[str, dict[str, Row]]) -> dict[str, Row]:
        return {
            point: {"full_seconds": rows["full"][compared(device)], **rows["lora"]} for point, rows in points.items()
        }

    name = f"{arguments.encoder}, {arguments.precision}"
    points = {f"{seconds:g} s": steps(seconds=seconds) for seconds in arguments.lengths}
    record.add(f"length: LoRA's step, batch of {arguments.batch}, {name}", against_full(points), "full")
    points = {f"{batch} x {arguments.seconds:g} s": steps(batch=batch) for batch in arguments.batches}
    record.add(f"batch: LoRA's step, {name}", against_full(points), "full")
    points = {}
    for count in arguments.layers:
        METHODS["lora"] = lambda count=count: LoRA(layers=f"top-{count}")
        points[f"top {count}"] = steps()
    record.add(
        f"layers with LoRA: a step, {arguments.batch} x {arguments.seconds:g} s, {name}", against_full(points), "full"
    )
    waveforms = torch.randn(16, int(arguments.seconds * 16_000), device=device)
    bearing = encoder_of(arguments.encoder, arguments.family, bears_padding=True).to(device)
    with torch.no_grad():
        rows = in_turns(our_forwards(bearing, "lora", waveforms, arguments.adapters), arguments.rounds, device)
    record.add(f"LoRA adapters in a mixed batch: a forward, 16 x {arguments.seconds:g} s, {name}", rows, "one")
    record.write()


if __name__ == "__main__":
    main()
