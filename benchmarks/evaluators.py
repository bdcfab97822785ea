"""The evaluators against public ones in the same run: EER, minDCF and Cllr; word error rates; ten million trials.

    python benchmarks/evaluators.py
    python benchmarks/evaluators.py --large 1000000 --rounds 5

Scores are drawn from two normal distributions, as many as VoxCeleb1-O has trials (37,720), and stand against
speechbrain's EER alone. Texts are drawn from a vocabulary of 1,000 words with a tenth of them changed, and stand
against ``jiwer``'s WER alone. The large list is measured in a process of its own, whose peak memory includes Python,
numpy and the scores themselves.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys

import numpy as np
import torch
from timing import Record, Row, in_turns, once, parse, parser_of

from speech_adapters.metrics.detection import cllr, detection_curve
from speech_adapters.metrics.wer import word_error_rate
from speech_adapters.runs.environment import peak_memory_bytes

CPU = torch.device("cpu")


def trials(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores (n,) and labels (n,), half of them targets as in VoxCeleb1-O."""
    rng = np.random.default_rng(0)
    labels = np.arange(count) % 2 == 0
    return rng.normal(np.where(labels, 2.0, -2.0), 1.5), labels


def texts(count: int) -> tuple[list[str], list[str]]:
    """References of 20 words, and what was understood of them."""
    rng = np.random.default_rng(0)
    words = rng.integers(1000, size=(count, 20))
    heard = np.where(rng.random(words.shape) < 0.1, rng.integers(1000, size=words.shape), words)
    one, other = ([" ".join(f"word{w}" for w in row) for row in rows] for rows in (words, heard))
    return one, other


def detection(scores: np.ndarray, labels: np.ndarray) -> Row:
    curve = detection_curve(scores, labels)
    figures = {f"minDCF({p})": float(curve.min_dcf(p).value) for p in (0.01, 0.05)}
    return {"EER": float(curve.eer().value), **figures, "Cllr": float(cllr(scores, labels))}


def against_speechbrain(count: int, rounds: int) -> dict[str, Row]:
    from speechbrain.utils.metric_stats import EER

    scores, labels = trials(count)
    targets, nontargets = torch.from_numpy(scores[labels]), torch.from_numpy(scores[~labels])
    ways = {
        "speechbrain, EER alone": lambda: EER(targets, nontargets),
        "ours, EER + minDCF + Cllr": lambda: detection(scores, labels),
    }
    rows = in_turns(ways, rounds, CPU)
    rows["speechbrain, EER alone"]["EER"] = float(EER(targets, nontargets)[0])
    rows["ours, EER + minDCF + Cllr"] |= detection(scores, labels)
    return rows


def against_jiwer(count: int, rounds: int) -> dict[str, Row]:
    import jiwer

    references, heard = texts(count)
    speakers = [f"speaker{place % 40}" for place in range(count)]
    ours = lambda: word_error_rate(references, heard, speakers, normalizer="none")  # noqa: E731
    rows = in_turns({"jiwer, WER alone": lambda: jiwer.wer(references, heard),
                     "ours, WER + CER + intervals by speaker": ours}, rounds, CPU)  # fmt: skip
    rows["jiwer, WER alone"]["WER"] = float(jiwer.wer(references, heard))
    rows["ours, WER + CER + intervals by speaker"]["WER"] = float(ours().wer.value)
    return rows


def large(count: int) -> Row:
    """The figures of a long list, and what they took."""
    scores, labels = trials(count)
    figures: Row = {}
    cost = once(lambda: figures.update(detection(scores, labels)), CPU)
    return {**cost, "peak_gib": peak_memory_bytes() / 2**30, **figures}


def main() -> None:
    parser = parser_of(__doc__, rounds=3)
    parser.add_argument("--trials", type=int, default=37_720)
    parser.add_argument("--texts", type=int, default=2_620, help="LibriSpeech test-clean has so many")
    parser.add_argument("--large", type=int, default=10_000_000, help="trials of the long list")
    parser.add_argument("--only-large", action="store_true", help=argparse.SUPPRESS)
    arguments = parse(parser, {"trials": 2000, "texts": 200, "large": 100_000})
    if arguments.only_large:
        print(json.dumps(large(arguments.large)))
        return
    record = Record(arguments, CPU)
    rows = against_speechbrain(arguments.trials, arguments.rounds)
    record.add(f"verification, {arguments.trials:,} trials", rows, "speechbrain's")
    rows = against_jiwer(arguments.texts, arguments.rounds)
    record.add(f"speech recognition, {arguments.texts:,} texts of 20 words", rows, "jiwer's")
    command = [sys.executable, __file__, f"--large={arguments.large}", "--only-large"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    record.add("verification, a long list", {f"{arguments.large:,} trials": json.loads(done.stdout)})
    record.write()


if __name__ == "__main__":
    main()
