"""Compress a bank of LoRA adapters together, and measure what it saves and what it costs.

SPEECH_ADAPTERS_DATA=... python benchmarks/compress_bank.py --trained 25 --perturbed 75 --output /tmp/compressed

Trains one CTC head on the frozen encoder's features of all domains and, under it, LoRA adapters of several domains,
seeds and ranks; adds perturbed copies (each tensor plus noise of 5 % of its norm); compresses all of them; and scores
each on its domain's test set before and after. Prints JSON: bytes, WER, and how far each adapter moved.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from pathlib import Path

import torch

from speech_adapters import CTCHead, LoRA, SpeechAdapterModel
from speech_adapters.bank.bank import Bank
from speech_adapters.bank.compression import compress
from speech_adapters.data.manifest import Manifest
from speech_adapters.metrics.wer import word_error_rate
from speech_adapters.tasks.predict import head_output
from speech_adapters.text import normalize

DOMAINS = ("librispeech", "arctic")


def utterances(domain: str, split: str, seconds: float, seed: int) -> list:
    folder = Path(os.environ["SPEECH_ADAPTERS_DATA"]) / "manifests"
    found = [u for u in Manifest.read(folder / f"asr_{domain}_{split}.jsonl") if u.duration < 5]
    random.Random(seed).shuffle(found)
    chosen, heard = [], 0.0
    for utterance in found:
        if heard < seconds:
            chosen.append(utterance)
            heard += utterance.duration
    return chosen


def train_head(model: SpeechAdapterModel, chosen: list, updates: int) -> None:
    """A CTC head on features that are computed once."""
    torch.manual_seed(0)
    model.add_head("ctc", CTCHead())
    head = model.head
    with torch.no_grad():
        features = [model.eval()(utterance.waveform()[None]).features[0] for utterance in chosen]
    draw, optimizer = random.Random(0), torch.optim.AdamW(head.parameters(), lr=3e-3)
    head.requires_grad_(True).train()
    for _ in range(updates):
        picked = [draw.randrange(len(chosen)) for _ in range(16)]
        rows = torch.nn.utils.rnn.pad_sequence([features[i] for i in picked], batch_first=True)
        scored = head(rows, torch.tensor([len(features[i]) for i in picked]))
        loss = head.loss(scored, targets_of(model, [chosen[i] for i in picked]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    head.requires_grad_(False).eval()
    print(f"head: loss {float(loss):.2f}", flush=True)


def targets_of(model: SpeechAdapterModel, chosen: list) -> torch.Tensor:
    config = model.head.config
    rows = [torch.tensor(config.encode(normalize(u.text, config.normalizer))) for u in chosen]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-100)


def train(model: SpeechAdapterModel, chosen: list, updates: int, seed: int) -> float:
    """A short training: AdamW, four utterances per update; returns the last loss."""
    draw, losses = random.Random(seed), []
    optimizer = torch.optim.AdamW([p for group in model.parameter_groups().values() for p in group], lr=2e-3)
    for _ in range(updates):
        batch = draw.sample(chosen, 4)
        waves = [u.waveform() for u in batch]
        padded = torch.nn.utils.rnn.pad_sequence(waves, batch_first=True)
        lengths = torch.tensor([len(wave) for wave in waves])
        output = model(padded, lengths, targets=targets_of(model, batch))
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        losses.append(float(output.loss))
    return losses[-1]


@torch.no_grad()
def score(model: SpeechAdapterModel, place: Path, chosen: list) -> tuple[int, int]:
    """Errors and words of an adapter under the encoder's own head."""
    name = model.load_adapter(place, name="scored")
    said = []
    for start in range(0, len(chosen), 16):
        waves = [u.waveform() for u in chosen[start : start + 16]]
        lengths = torch.tensor([len(wave) for wave in waves])
        padded = torch.nn.utils.rnn.pad_sequence(waves, batch_first=True)
        said += model.head.predict(head_output(model.eval()(padded, lengths)))
    model.delete_adapter(name)
    result = word_error_rate([u.text for u in chosen], said, normalizer=model.head.config.normalizer)
    return sum(u.errors for u in result.utterances), result.words


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trained", type=int, default=25)
    parser.add_argument("--perturbed", type=int, default=75)
    parser.add_argument("--updates", type=int, default=40)
    parser.add_argument("--head-updates", type=int, default=1500)
    parser.add_argument("--test-seconds", type=float, default=120)
    parser.add_argument("--noise", type=float, default=0.05)
    parser.add_argument("--target-error", type=float, default=0.1)
    parser.add_argument("--encoder", default="tiny-wavlm")
    parser.add_argument("--output", type=Path, required=True)
    given = parser.parse_args()
    model = SpeechAdapterModel.from_pretrained(given.encoder)
    bank = Bank.create(given.output / "bank")
    tests = {domain: utterances(domain, "test", given.test_seconds, 0) for domain in DOMAINS}
    data = {domain: utterances(domain, "train", 1200, 1) for domain in DOMAINS}
    started = time.perf_counter()
    train_head(model, [u for own in data.values() for u in own[:120]], given.head_updates)
    for number in range(given.trained):
        domain, rank = DOMAINS[number % len(DOMAINS)], (4, 8, 16)[number // len(DOMAINS) % 3]
        name = f"t{number}"
        torch.manual_seed(number)
        model.add_adapter(name, LoRA(rank=rank, alpha=rank))
        model.train_adapter(name, head="ctc", train_head=False)
        loss = train(model, data[domain], given.updates, number)
        print(f"{name}: {domain}, rank {rank}, loss {loss:.2f}, {time.perf_counter() - started:.0f} s", flush=True)
        copies = given.perturbed // given.trained + (number < given.perturbed % given.trained)
        kept = {key: tensor.clone() for key, tensor in model.adapters[name].tensors().items()}
        for copy in range(copies + 1):
            if copy:
                draw = torch.Generator().manual_seed(1000 * number + copy)
                noisy = {}
                for key, tensor in kept.items():
                    noise = torch.randn(tensor.shape, generator=draw)
                    noisy[key] = tensor + given.noise * tensor.norm() / noise.norm() * noise
                model.adapters[name].load_tensors(noisy)
            place = model.save_adapter(name, given.output / "adapters" / f"{name}-{copy}")
            bank.add(place, f"{domain}/{name}-{copy}", domain=domain, task="asr")
        model.delete_adapter(name)
    began = time.perf_counter()
    done = compress(bank, bank.search(), model.encoder, given.target_error)
    seconds = time.perf_counter() - began
    print(f"compressed in {seconds:.0f} s: ranks {done.ranks}", flush=True)
    sums = {"before": [0, 0], "after": [0, 0]}
    worst = 0.0
    for one in done.adapters:
        rates = []
        for key, found in (("before", one.before), ("after", one.after)):
            errors, words = score(model, bank.layout.object_folder(found.version.object), tests[found.facts.domain])
            sums[key][0], sums[key][1] = sums[key][0] + errors, sums[key][1] + words
            rates.append(errors / words)
        worst = max(worst, abs(rates[1] / rates[0] - 1))
    before, after = (errors / words for errors, words in sums.values())
    found = {
        "adapters": len(done.adapters),
        "clusters": len(done.ranks),
        "bytes_before": done.bytes_before,
        "bytes_after": done.bytes_after,
        "times_smaller": done.bytes_before / done.bytes_after,
        "largest_error": max(one.error for one in done.adapters),
        "wer_before": before,
        "wer_after": after,
        "relative_change": after / before - 1,
        "largest_relative_change_of_one": worst,
        "compression_seconds": seconds,
    }
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
