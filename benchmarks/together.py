"""Several adapters trained in one pass against one after another, and against one alone: in the same run.

    python benchmarks/together.py                                  # eight of each kind, packaged encoder
    python benchmarks/together.py --methods lora --count 8 --encoder base
    python benchmarks/together.py --cache                          # from cached activations

All of a kind learn from the same batches at different rates, as in a search. Published for language models: 1.2 to 1.8
times as fast as one after another (mLoRA, VLDB 2025).
"""

from __future__ import annotations

import argparse
import contextlib
import io
import tempfile
from pathlib import Path

import torch
from material import encoder_of, speech
from timing import Record, in_turns, parse, parser_of, the_device

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

    def run(self, together: bool) -> None:
        for group in [self.members] if together else [[member] for member in self.members]:
            self.runs += 1
            run = RunFolder.create("benchmark", path=self.folder / f"run{self.runs}")
            for member in group:
                member.model.train_adapter(member.name, head="head")
            train_together(group, run)


def main() -> None:
    parser = parser_of(__doc__, rounds=2)
    parser.add_argument("--encoder", default="tiny-wavlm", help="packaged name, folder or hub id, or base")
    parser.add_argument("--methods", nargs="+", default=["head-only", "l-frozen", "lora"], choices=list(METHODS))
    parser.add_argument("--count", type=int, default=8)
    parser.add_argument("--manifest", type=Path, help="labelled speech; by default LibriSpeech's")
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--batch-seconds", type=float, default=30.0)
    parser.add_argument("--updates", type=int, default=4)
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--cache", action="store_true", help="from cached activations")
    quick = {"methods": ["head-only"], "count": 2, "minutes": 0.3, "batch_seconds": 10.0, "updates": 2}
    arguments, device = parse(parser, quick), the_device()
    record, manifest = Record(arguments, device), speech(arguments.manifest, arguments.minutes)
    shape = f"{arguments.encoder}, {arguments.updates} updates of {arguments.batch_seconds:g} s, {arguments.precision}"
    count = arguments.count
    for method in arguments.methods:
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            one = Way(arguments, method, 1, manifest, Path(folder) / "one")
            many = Way(arguments, method, count, manifest, Path(folder) / "many")
            ways = {
                "one alone": lambda one=one: one.run(True),
                f"{count} one after another": lambda many=many: many.run(False),
                f"{count} in one pass": lambda many=many: many.run(True),
            }
            rows = in_turns(ways, arguments.rounds, device)
        apart = rows[f"{count} one after another"]["ratio"]
        for row in rows.values():
            row["of_one_after_another"] = row["ratio"] / apart
        record.add(f"{method}, {shape}{', cached' if arguments.cache else ''}", rows, "one")
    record.write()


if __name__ == "__main__":
    main()
