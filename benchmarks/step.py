"""A training step of each method against full fine-tuning's: time in one run, peak memory in a process of its own.

    python benchmarks/step.py                                      # WavLM Base size, random weights, CPU or GPU
    python benchmarks/step.py --encoder tiny-wavlm --methods lora houlsby elp
    python benchmarks/step.py --precision bf16 --checkpointing --compile --json step.json

Methods take turns; CPU seconds of the process are compared on a CPU, so that other programs count little, and wall
seconds on a GPU. "full" trains all transformer layers on a frozen CNN, as is usual; "everything" the CNN too. Memory
is the process's peak while it makes two steps: in all, and above what the bare model takes. A step is forward,
backward, clipping and AdamW (fused). Weights are random: speed does not depend on them.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import nn
from transformers import AutoConfig, AutoModel

from speech_adapters import SpeechAdapterModel
from speech_adapters.adapters import Bottleneck, LoRA, preset
from speech_adapters.adapters.bottleneck import SITES
from speech_adapters.encoders import Encoder, load_encoder
from speech_adapters.heads import CTCHead
from speech_adapters.runs.environment import peak_memory_bytes, reset_peak_memory
from speech_adapters.training.meters import FlopCounter

METHODS = {
    "full": lambda: preset("full"),
    "everything": lambda: preset("full"),
    "lora": lambda: LoRA(),
    "lora-attention": lambda: LoRA(targets=("q_proj", "k_proj", "v_proj", "out_proj")),
    "bottleneck": lambda: Bottleneck(),
    "houlsby": lambda: Bottleneck(sites=SITES),
    "elp": lambda: preset("elp"),
    "l": lambda: preset("l"),
    "l-frozen": lambda: preset("l-frozen"),
    "head-only": lambda: preset("head-only"),
}


def encoder_of(name: str) -> Encoder:
    """A packaged or local encoder, or "base": WavLM Base+ in size with random weights."""
    if name != "base":
        return load_encoder(name)
    torch.manual_seed(0)
    return Encoder(AutoModel.from_config(AutoConfig.for_model("wavlm")).eval(), "base")


class Step:
    """One method, ready to train on a random batch."""

    def __init__(self, arguments: argparse.Namespace, method: str, encoder: Encoder, device: torch.device) -> None:
        self.arguments, self.device = arguments, device
        torch.manual_seed(0)
        self.model = SpeechAdapterModel(copy.deepcopy(encoder) if method == "everything" else encoder)
        self.model.add_adapter(method, METHODS[method]())
        self.model.add_head("asr", CTCHead())
        self.model.train_adapter(method, head="asr")
        self.model.gradient_checkpointing = arguments.checkpointing
        self.model.to(device)
        self.parameters = [p for group in self.model.parameter_groups().values() for p in group]
        if method == "everything":
            front = [p for block in self.model.encoder.cnn_blocks for p in block.requires_grad_(True).parameters()]
            self.parameters += front
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-5, fused=True)
        samples = int(arguments.seconds * 16_000)
        self.waveforms = torch.randn(arguments.batch, samples, device=device)
        self.targets = torch.randint(5, 30, (arguments.batch, int(10 * arguments.seconds)), device=device)
        self.forward = torch.compile(self.model) if arguments.compile else self.model

    def __call__(self) -> None:
        for parameter in self.parameters:  # what stands in the shared base, another method's step has frozen
            parameter.requires_grad_(True)
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.arguments.precision == "bf16"):
            loss = self.forward(self.waveforms, targets=self.targets).loss
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()


def clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return time.perf_counter()
    return time.process_time()


def times(arguments: argparse.Namespace, device: torch.device) -> dict[str, float]:
    """Median seconds of a step; the methods take turns, the first round is thrown away."""
    encoder = encoder_of(arguments.encoder)
    steps = {method: Step(arguments, method, encoder, device) for method in arguments.methods}
    found: dict[str, list[float]] = {method: [] for method in steps}
    for _ in range(arguments.runs + 1):
        for method, step in steps.items():
            started = clock(device)
            step()
            found[method].append(clock(device) - started)
            step.optimizer.zero_grad(set_to_none=True)
    return {method: statistics.median(own[1:]) for method, own in found.items()}


def memory(arguments: argparse.Namespace, method: str, device: torch.device) -> dict[str, float]:
    """Peak bytes of two steps in this process: in all, and above the bare model; and a step's operations."""
    step = Step(arguments, method, encoder_of(arguments.encoder), device)
    before = resident() if device.type == "cpu" else torch.cuda.memory_allocated(device)
    reset_peak_memory(device)
    step()
    with FlopCounter() as counter:
        step()
    peak = peak_memory_bytes(device)
    return {"peak": peak, "above": peak - before, "flops": counter.flops}


def resident() -> int:
    """Bytes of this process in memory now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default="base", help="packaged name, folder or hub id, or base")
    parser.add_argument("--methods", nargs="+", default=["full", "lora", "bottleneck", "houlsby"],
                        choices=list(METHODS))  # fmt: skip
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=8.0, help="length of each utterance")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--checkpointing", action="store_true", help="recompute layers in the backward pass")
    parser.add_argument("--compile", action="store_true", help="torch.compile the model")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--memory-of", choices=list(METHODS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if arguments.memory_of:
        print(json.dumps(memory(arguments, arguments.memory_of, device)))
        return
    rows = {}
    for method in arguments.methods:
        command = [sys.executable, *sys.argv, "--memory-of", method]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        rows[method] = json.loads(done.stdout.splitlines()[-1])
    for method, seconds in times(arguments, device).items():
        rows[method]["seconds"] = seconds
    unit = "seconds" if device.type == "cuda" else "CPU seconds"
    print(
        f"{arguments.encoder}, {arguments.batch} x {arguments.seconds:g} s, {arguments.precision}, {device.type}, "
        f"{arguments.threads} thread(s), {unit} a step, median of {arguments.runs} interleaved"
    )
    base = next(iter(rows.values()))
    for method, row in rows.items():
        print(
            f"  {method:16s} {row['seconds']:7.2f} s ({row['seconds'] / base['seconds']:4.0%})  "
            f"{row['peak'] / 2**30:5.2f} GiB ({row['peak'] / base['peak']:4.0%})  "
            f"above the model {row['above'] / 2**30:5.2f} GiB ({row['above'] / base['above']:4.0%})  "
            f"{row['flops'] / 1e9:6.0f} GFLOP ({row['flops'] / base['flops']:4.0%})",
            flush=True,
        )
    if arguments.json:
        arguments.json.write_text(json.dumps({"settings": vars(arguments) | {"json": None}, "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
