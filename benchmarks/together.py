"""Several adapters trained in one pass against one after another, and against one alone: in the same run.

    python benchmarks/together.py                                  # eight of each kind, packaged encoder
    python benchmarks/together.py --methods lora --count 8 --encoder base
    python benchmarks/together.py --cache --json together.json     # from cached activations

All of a kind learn from the same batches at different rates, as in a search. CPU seconds of the process on a CPU, wall
seconds on a GPU; the two ways take turns. Published for language models: 1.2 to 1.8 times (mLoRA, VLDB 2025).
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import statistics
import tempfile
from pathlib import Path

import torch
from cache import speech
from step import clock, encoder_of

from speech_adapters import SpeechAdapterModel
from speech_adapters.data.batches import SpeechDataset
from speech_adapters.heads import ClassificationHead, CTCHead
from speech_adapters.runs.folder import RunFolder
from speech_adapters.training.settings import Cache, TrainingConfig
from speech_adapters.training.together import Member, train_together

METHODS = {"head-only": "class", "l-frozen": "class", "weighted-sum": "class", "l": "class", "lora": "ctc",
           "houlsby": "ctc"}  # fmt: skip


class Way:
    """``count`` members on one encoder, trained for some updates in one pass or one after another."""

    def __init__(self, arguments: argparse.Namespace, method: str, count: int, manifest, folder: Path) -> None:
        self.arguments, self.folder, self.runs = arguments, folder, 0
        labels = manifest.values("speaker")
        head = CTCHead() if METHODS[method] == "ctc" else ClassificationHead(labels=labels, label_field="speaker")
        encoder, data = encoder_of(arguments.encoder), SpeechDataset(manifest, head.target)
        cache = Cache(folder=folder / "cache") if arguments.cache else None
        self.members = []
        for number in range(count):
            torch.manual_seed(number)
            model, name = SpeechAdapterModel(encoder), f"a{number}"
            model.add_adapter(name, method)
            model.add_head("head", head)
            model.train_adapter(name, head="head")
            config = TrainingConfig(
                updates=arguments.updates,
                batch_seconds=arguments.batch_seconds,
                precision=arguments.precision,
                cache=cache,
                trackers=(),
                save_minutes=None,
                learning_rates={"head": 1e-4 * (number + 1)},
            )
            self.members.append(Member(name=name, model=model, dataset=data, config=config))

    def run(self, together: bool, device: torch.device) -> float:
        """Seconds."""
        groups = [self.members] if together else [[member] for member in self.members]
        total = 0.0
        for group in groups:
            self.runs += 1
            run = RunFolder.create("benchmark", path=self.folder / f"run{self.runs}")
            for member in group:
                member.model.train_adapter(member.name, head="head")
            started = clock(device)
            train_together(group, run)
            total += clock(device) - started
        return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default="tiny-wavlm", help="packaged name, folder or hub id, or base")
    parser.add_argument("--methods", nargs="+", default=["head-only", "l-frozen", "lora"], choices=list(METHODS))
    parser.add_argument("--count", type=int, default=8)
    parser.add_argument("--manifest", type=Path, help="labelled speech; by default LibriSpeech's")
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--batch-seconds", type=float, default=30.0)
    parser.add_argument("--updates", type=int, default=4)
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--cache", action="store_true", help="from cached activations")
    parser.add_argument("--runs", type=int, default=2, help="timed ones, after a first")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the figures there")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    manifest, rows = speech(arguments.manifest, arguments.minutes), {}
    print(
        f"{arguments.encoder}, {arguments.updates} updates of {arguments.batch_seconds:g} s, {arguments.precision}, "
        f"{'cached, ' if arguments.cache else ''}{device.type}, {arguments.threads} thread(s), "
        f"median of {arguments.runs} interleaved"
    )
    for method in arguments.methods:
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            one = Way(arguments, method, 1, manifest, Path(folder) / "one")
            many = Way(arguments, method, arguments.count, manifest, Path(folder) / "many")
            times: dict[str, list[float]] = {"one": [], "together": [], "apart": []}
            for _ in range(arguments.runs + 1):
                times["one"].append(one.run(True, device))
                times["together"].append(many.run(True, device))
                times["apart"].append(many.run(False, device))
        row = {way: statistics.median(own[1:]) for way, own in times.items()}
        rows[method] = row
        print(
            f"  {method:14s} one {row['one']:7.2f} s  {arguments.count} together {row['together']:7.2f} s "
            f"({row['together'] / row['one']:5.2f} of one)  one after another {row['apart']:7.2f} s "
            f"({row['together'] / row['apart']:5.2f} of that)",
            flush=True,
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
