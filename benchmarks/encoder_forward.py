"""Our encoder forward against transformers' own: time and memory of forward and backward, in the same run.

    python benchmarks/encoder_forward.py   # WavLM base size, this machine's device
    python benchmarks/encoder_forward.py --family hubert --seconds 10 --batch 4 --precision bf16

Weights are random (speed does not depend on them). Runs alternate, the first pair is thrown away, medians are printed
with the ratio stock / ours: above 1, ours is faster or smaller. Memory is measured on a GPU only.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from transformers import AutoConfig, AutoModel

from speech_adapters.encoders import encode


def measure(step, device: torch.device) -> tuple[float, float]:
    """Seconds and peak bytes of one step."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return time.perf_counter() - started, torch.cuda.max_memory_allocated(device)
    return time.perf_counter() - started, float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", default="wavlm", choices=["wav2vec2", "hubert", "wavlm"])
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=15.0, help="length of each utterance")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    model = AutoModel.from_config(AutoConfig.for_model(arguments.family, num_hidden_layers=arguments.layers))
    model = model.to(device).eval()
    model.feature_extractor.requires_grad_(False)  # as in training on a frozen CNN
    waveforms = torch.randn(arguments.batch, int(arguments.seconds * 16000), device=device)

    def step(forward) -> None:
        model.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=arguments.precision == "bf16"):
            output = forward(waveforms)
        output.last_hidden_state.float().square().mean().backward()

    times: dict[str, list[tuple[float, float]]] = {"stock": [], "ours": []}
    for _ in range(arguments.runs + 1):
        times["stock"].append(measure(lambda: step(model), device))
        times["ours"].append(measure(lambda: step(lambda x: encode(model, x)), device))
    seconds = {name: statistics.median(t for t, _ in runs[1:]) for name, runs in times.items()}
    memory = {name: max(m for _, m in runs[1:]) for name, runs in times.items()}
    shape = (
        f"{arguments.batch} x {arguments.seconds:g} s, {arguments.layers} layers, {arguments.precision}, {device.type}"
    )
    print(f"{arguments.family}, forward and backward, {shape}")
    for name in times:
        extra = f", peak {memory[name] / 2**30:.2f} GiB" if device.type == "cuda" else ""
        print(f"  {name:5s} {seconds[name]:.3f} s{extra}")
    print(f"  time   stock / ours = {seconds['stock'] / seconds['ours']:.2f}")
    if device.type == "cuda":
        print(f"  memory ours / stock = {memory['ours'] / memory['stock']:.2f}")


if __name__ == "__main__":
    main()
