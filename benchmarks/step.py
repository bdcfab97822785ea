"""A training step of each method against full fine-tuning's: time in one run, peak memory in a process of its own.

    python benchmarks/step.py                                      # WavLM Base size, random weights, CPU or GPU
    python benchmarks/step.py --encoder tiny-wavlm --methods full lora houlsby elp
    python benchmarks/step.py --family wav2vec2 --methods peft full lora
    python benchmarks/step.py --precision bf16 --checkpointing --compile
    python benchmarks/step.py --batch 4 --seconds 12 --selective    # selective checkpointing against full's plain step

The first method is the baseline. "full" trains all transformer layers on a frozen CNN, as is usual; "everything" the
CNN too. "peft" is what a user runs otherwise: ``peft``'s LoRA on the queries and values of stock ``transformers`` with
a CTC head, the CNN frozen as in Hugging Face's examples, stepped by its ``Trainer``; stock WavLM's attention does not
run it. Memory is the process's peak while it makes two steps: in all, and above what the bare model takes. A
step is forward, backward, clipping and AdamW (fused). Weights are random: speed does not depend on them.
"""

from __future__ import annotations

import argparse
import copy
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from material import encoder_of
from timing import Record, in_turns, parse, parser_of, the_device
from torch import nn

from speech_adapters import SpeechAdapterModel
from speech_adapters.adapters import Bottleneck, LoRA, preset
from speech_adapters.adapters.bottleneck import SITES
from speech_adapters.encoders import Encoder
from speech_adapters.heads import CTCHead
from speech_adapters.precision import autocast
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


def batch_of(arguments: argparse.Namespace, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Waveforms (B, samples) of noise and targets (B, U)."""
    torch.manual_seed(0)
    waveforms = torch.randn(arguments.batch, int(arguments.seconds * 16_000), device=device)
    return waveforms, torch.randint(5, 30, (arguments.batch, max(1, int(10 * arguments.seconds))), device=device)


class Step:
    """One method, ready to train on a random batch."""

    def __init__(self, arguments: argparse.Namespace, method: str, encoder: Encoder, device: torch.device) -> None:
        self.device, self.precision = device, arguments.precision
        self.waveforms, self.targets = batch_of(arguments, device)
        self.model = SpeechAdapterModel(copy.deepcopy(encoder) if method == "everything" else encoder)
        self.model.add_adapter(method, METHODS[method]())
        self.model.add_head("asr", CTCHead())
        self.model.train_adapter(method, head="asr")
        selective = arguments.selective and method != arguments.methods[0]
        self.model.gradient_checkpointing = "selective" if selective else arguments.checkpointing
        self.model.to(device)
        self.parameters = [p for group in self.model.parameter_groups().values() for p in group]
        if method == "everything":
            front = [p for block in self.model.encoder.cnn_blocks for p in block.requires_grad_(True).parameters()]
            self.parameters += front
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-5, fused=True)
        self.forward: Callable[..., Any] = self.model

    def __call__(self) -> None:
        for parameter in self.parameters:  # what stands in the shared base, another method's step has frozen
            parameter.requires_grad_(True)
        with autocast(self.device, self.precision):
            loss = self.forward(self.waveforms, targets=self.targets).loss
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


class TrainerStep:
    """A step of Hugging Face's ``Trainer`` on ``peft``'s LoRA and stock ``transformers``."""

    def __init__(self, arguments: argparse.Namespace, encoder: Encoder, device: torch.device) -> None:
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCTC, Trainer, TrainingArguments

        config = copy.deepcopy(encoder.config)
        config.update({"vocab_size": 32, "layerdrop": 0.0, "ctc_zero_infinity": True})
        model = AutoModelForCTC.from_config(config)
        model.freeze_feature_encoder()
        lora = LoraConfig(r=8, lora_alpha=8, target_modules=["q_proj", "v_proj"], modules_to_save=["lm_head"])
        settings = TrainingArguments(
            ".", report_to=[], use_cpu=device.type == "cpu", bf16=arguments.precision == "bf16",
            gradient_checkpointing=arguments.checkpointing,
        )  # fmt: skip
        self.trainer = Trainer(get_peft_model(model, lora), settings)
        self.trainer.create_optimizer()
        self.trainer.current_gradient_accumulation_steps = 1  # as its loop sets it
        self.model = self.trainer.model.to(device).train()
        waveforms, labels = batch_of(arguments, device)
        self.batch = {"input_values": waveforms, "labels": labels}

    def __call__(self) -> None:
        self.trainer.training_step(self.model, dict(self.batch))
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.trainer.optimizer.step()
        self.model.zero_grad()


def compiled(step: Step) -> Step:
    """The same through ``torch.compile``, whose work is done in the round that does not count."""
    other = copy.copy(step)
    other.forward = torch.compile(step.model)
    return other


def step_of(arguments: argparse.Namespace, method: str, encoder: Encoder, device: torch.device) -> Step | TrainerStep:
    if method == "peft":
        return TrainerStep(arguments, encoder, device)
    return Step(arguments, method, encoder, device)


def memory(arguments: argparse.Namespace, device: torch.device) -> dict[str, float]:
    """Peak GiB of two steps in this process: in all, and above the bare model; and a step's operations."""
    step = step_of(arguments, arguments.memory_of, encoder_of(arguments.encoder, arguments.family), device)
    before = resident() if device.type == "cpu" else torch.cuda.memory_allocated(device)
    reset_peak_memory(device)
    step()
    with FlopCounter() as counter:
        step()
    peak = peak_memory_bytes(device)
    return {"peak_gib": peak / 2**30, "above_gib": (peak - before) / 2**30, "gflop": counter.flops / 1e9}


def resident() -> int:
    """Bytes of this process in memory now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def memory_of(method: str) -> dict[str, float]:
    """:func:`memory` in a process of its own."""
    command = [sys.executable, *sys.argv, "--memory-of", method]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def parser() -> argparse.ArgumentParser:
    parser = parser_of(__doc__, rounds=3)
    parser.add_argument("--encoder", default="base", help="packaged name, folder or hub id, or base")
    parser.add_argument("--family", default="wavlm", choices=["wavlm", "wav2vec2", "hubert"], help="of base")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=8.0, help="length of each utterance")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--checkpointing", action="store_true", help="recompute layers in the backward pass")
    parser.add_argument("--selective", action="store_true", help="recompute parts of layers, but for the first method")
    parser.add_argument("--compile", action="store_true", help="each of ours through torch.compile too")
    return parser


def main() -> None:
    own = parser()
    own.add_argument("--methods", nargs="+", default=["full", "lora", "bottleneck", "houlsby"],
                     choices=["peft", *METHODS])  # fmt: skip
    own.add_argument("--memory-of", choices=["peft", *METHODS], help=argparse.SUPPRESS)
    arguments, device = (
        parse(own, {"encoder": "tiny-wavlm", "seconds": 1.0, "methods": ["full", "lora"]}),
        the_device(),
    )
    if arguments.memory_of:
        print(json.dumps(memory(arguments, device)))
        return
    record = Record(arguments, device)
    found: dict[str, Any] = {method: memory_of(method) for method in arguments.methods}
    encoder = encoder_of(arguments.encoder, arguments.family)
    steps = {method: step_of(arguments, method, encoder, device) for method in arguments.methods}
    if arguments.compile:
        steps |= {f"{method}, compiled": compiled(step) for method, step in steps.items() if isinstance(step, Step)}
    rows = in_turns(steps, arguments.rounds, device)
    base = found[arguments.methods[0]]
    for method, row in rows.items():
        for key, value in found.get(method, {}).items():
            row[key] = value
            row[f"{key.partition('_')[0]}_ratio"] = value / base[key]
    name = f"{arguments.family} Base size" if arguments.encoder == "base" else arguments.encoder
    options = ["layers recomputed"] if arguments.checkpointing else []
    options += ["parts of layers recomputed, but for the first"] if arguments.selective else []
    shape = f"{arguments.batch} x {arguments.seconds:g} s"
    record.add(", ".join([name, "a step", shape, arguments.precision, *options]), rows, arguments.methods[0])
    record.write()


if __name__ == "__main__":
    main()
