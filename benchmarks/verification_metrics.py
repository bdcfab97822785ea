"""EER, minDCF and Cllr against speechbrain's EER in the same run; ten million trials with time and peak memory.

    python benchmarks/verification_metrics.py
    python benchmarks/verification_metrics.py --large 1000000 --runs 5

Scores are drawn from two normal distributions. The first comparison has as many trials as VoxCeleb1-O (37,720); runs
alternate, and the ratio of the medians is printed. The large list is measured in a process of its own, whose peak
memory includes Python, numpy and the scores themselves.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np

from speech_adapters.metrics.detection import cllr, detection_curve


def trials(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores (n,) and labels (n,), half of them targets as in VoxCeleb1-O."""
    rng = np.random.default_rng(0)
    labels = np.arange(count) % 2 == 0
    return rng.normal(np.where(labels, 2.0, -2.0), 1.5), labels


def ours(scores: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    curve = detection_curve(scores, labels)
    figures = {f"minDCF({p})": curve.min_dcf(p).value for p in (0.01, 0.05)}
    return {"EER": curve.eer().value, **figures, "Cllr": cllr(scores, labels)}


def seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def compare(count: int, runs: int) -> None:
    import torch
    from speechbrain.utils.metric_stats import EER

    torch.set_num_threads(1)  # both on one core
    scores, labels = trials(count)
    targets, nontargets = torch.from_numpy(scores[labels]), torch.from_numpy(scores[~labels])
    ours(scores, labels)
    times: dict[str, list[float]] = {"ours": [], "speechbrain": []}
    for _ in range(runs):
        times["speechbrain"].append(seconds(lambda: EER(targets, nontargets)))
        times["ours"].append(seconds(lambda: ours(scores, labels)))
    middle = {name: statistics.median(values) for name, values in times.items()}
    print(f"{count:,} trials, median of {runs}")
    print(f"  ours, EER + minDCF + Cllr   {1000 * middle['ours']:9.2f} ms   EER {ours(scores, labels)['EER']:.6f}")
    print(
        f"  speechbrain, EER alone      {1000 * middle['speechbrain']:9.2f} ms   EER {EER(targets, nontargets)[0]:.6f}"
    )
    print(f"  speechbrain / ours = {middle['speechbrain'] / middle['ours']:.0f}")


def measure_large(count: int) -> None:
    from speech_adapters.runs.environment import peak_memory_bytes

    scores, labels = trials(count)
    started, busy = time.perf_counter(), time.process_time()
    figures = ours(scores, labels)
    took, busy = time.perf_counter() - started, time.process_time() - busy
    shown = ", ".join(f"{name} {value:.4f}" for name, value in figures.items())
    peak = f"peak memory {peak_memory_bytes() / 2**30:.2f} GiB"
    print(f"{count:,} trials: {shown}\n  {took:.2f} s ({busy:.2f} s of processor time), {peak}")
    minimum = seconds(lambda: print(f"  minCllr {detection_curve(scores, labels).min_cllr():.4f}", end=" "))
    print(f"in {minimum:.2f} s more")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=37_720)
    parser.add_argument("--large", type=int, default=10_000_000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--only-large", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only_large:
        measure_large(arguments.large)
        return
    compare(arguments.trials, arguments.runs)
    command = [sys.executable, __file__, f"--large={arguments.large}", "--only-large"]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


if __name__ == "__main__":
    main()
