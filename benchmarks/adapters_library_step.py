"""A training step of the public `adapters` library's bottlenecks against ours, each beside full fine-tuning.

    ADAPTERS_LIBRARY_PYTHON=/path/to/other/venv/bin/python python benchmarks/adapters_library_step.py

``adapters_library_parity.py`` says how the other environment is made. There the library's plug-in interface puts two
bottlenecks into each layer of a stock wav2vec 2.0 of Base size with random weights; here ours stand at the same
places. The CNN is frozen everywhere. A step is forward, CTC loss, backward, clipping and AdamW (fused) on the same
noise. The two sides cannot share a process, so that they take turns by blocks; a ratio is to full fine-tuning of the
same side. Memory is a process's peak while it makes two steps.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from adapters_library_parity import INTERFACE
from torch import nn

OTHER = "ADAPTERS_LIBRARY_PYTHON"
REDUCTION = 16
WAYS = ("full", "bottlenecks")


def library_step(way: str, batch: int, seconds: float) -> Callable[[], None]:
    """In the library's environment: a step of full fine-tuning, or of its bottlenecks."""
    import adapters
    from adapters import AdapterModelInterface, DoubleSeqBnConfig
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    torch.manual_seed(0)
    waveforms = torch.randn(batch, int(seconds * 16_000))
    targets = torch.randint(5, 30, (batch, max(1, int(10 * seconds))))
    model = Wav2Vec2Model(Wav2Vec2Config(layerdrop=0.0, apply_spec_augment=False))
    head = nn.Linear(model.config.hidden_size, 32)
    model.feature_extractor._freeze_parameters()  # else stock's CNN is differentiated, its weights frozen or not
    if way != "full":
        adapters.init(model, interface=AdapterModelInterface(**INTERFACE))
        model.add_adapter("a", config=DoubleSeqBnConfig(reduction_factor=REDUCTION, non_linearity="gelu"))
        model.train_adapter("a")
        model.set_active_adapters("a")
    model.train()
    trained = [p for p in (*model.parameters(), *head.parameters()) if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=True)

    def step() -> None:
        logits = head(model(waveforms).last_hidden_state).log_softmax(-1).transpose(0, 1)
        lengths, symbols = torch.full((batch,), len(logits)), torch.full((batch,), targets.shape[1])
        nn.functional.ctc_loss(logits, targets, lengths, symbols, zero_infinity=True).backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        assert way == "full" or all(parameter.grad is not None for parameter in trained), "the adapter is not active"
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def our_step(way: str, batch: int, seconds: float) -> Callable[[], None]:
    """The same of ours."""
    from material import encoder_of
    from step import Step

    methods = {"full": "full", "bottlenecks": "houlsby"}
    arguments = argparse.Namespace(
        batch=batch, seconds=seconds, precision="fp32", checkpointing=False, selective=False
    )
    return Step(arguments, methods[way], encoder_of("base", "wav2vec2"), torch.device("cpu"))


def measure(side: Callable[..., Callable[[], None]], arguments: argparse.Namespace) -> dict[str, Any]:
    """CPU seconds of each way's steps, taking turns; or the peak of one way alone, in GiB."""
    torch.set_num_threads(arguments.threads)
    if arguments.memory_of:
        step = side(arguments.memory_of, arguments.batch, arguments.seconds)
        step()
        step()
        return {"peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}
    steps = {way: side(way, arguments.batch, arguments.seconds) for way in WAYS}
    found: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(arguments.rounds + 1):
        for way, step in steps.items():
            start = time.process_time()
            step()
            found[way].append(time.process_time() - start)
    return {way: seconds[1:] for way, seconds in found.items()}


def ask(python: str, side: str, *options: str) -> dict[str, Any]:
    """:func:`measure` in a process of its own, in this environment or the other."""
    command = [python, __file__, f"--side={side}", *options]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = parser_of(__doc__, rounds=2)
    parser.add_argument("--python", default=os.environ.get(OTHER), help=f"the other interpreter (default: ${OTHER})")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=6.0, help="length of each utterance")
    parser.add_argument("--blocks", type=int, default=2, help="turns of each side")
    arguments = parse(parser, {"batch": 1, "seconds": 1.0, "blocks": 1})
    if arguments.python is None:
        parser.error(f"--python: give the interpreter of an environment with adapters 1.3.0, or set {OTHER}")
    sides = {"library": arguments.python, "ours": sys.executable}
    record = Record(arguments, torch.device("cpu"))
    options = [f"--{name}={getattr(arguments, name)}" for name in ("batch", "seconds", "rounds", "threads")]
    blocks = [{side: ask(python, side, *options) for side, python in sides.items()} for _ in range(arguments.blocks)]
    rows: dict[str, dict[str, Any]] = {}
    for side, name in (("library", "adapters 1.3.0"), ("ours", "ours")):
        memory = {way: ask(sides[side], side, *options, f"--memory-of={way}")["peak_gib"] for way in WAYS}
        pairs = [
            pair for block in blocks for pair in zip(block[side]["full"], block[side]["bottlenecks"], strict=True)
        ]
        for place, way in enumerate(WAYS):
            rows[f"{name}: {way}"] = {
                "cpu_seconds": statistics.median(pair[place] for pair in pairs),
                "ratio": statistics.median(pair[place] / pair[0] for pair in pairs),
                "peak_gib": memory[way],
                "peak_ratio": memory[way] / memory["full"],
            }
    shape = f"{arguments.batch} x {arguments.seconds:g} s"
    record.add(f"wav2vec2 Base size, two bottlenecks a layer, a step, {shape}, fp32", rows, "full")
    record.write()


def one_side() -> None:
    """A process of one side: it has no more in common with the other than this file and torch."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--side", choices=["library", "ours"])
    parser.add_argument("--memory-of", choices=WAYS)
    parser.add_argument("--seconds", type=float)
    for name in ("--batch", "--rounds", "--threads"):
        parser.add_argument(name, type=int)
    arguments = parser.parse_args()
    print(json.dumps(measure({"library": library_step, "ours": our_step}[arguments.side], arguments)))


if __name__ == "__main__":
    if any(word.startswith("--side=") for word in sys.argv):
        one_side()
    else:
        from timing import Record, parse, parser_of

        main()
