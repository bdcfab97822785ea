"""A base in 8 and 4 bits against the same in float32: memory of its weights, time, likeness of its output.

    python benchmarks/quantized_base.py                                  # tiny-wavlm
    python benchmarks/quantized_base.py --encoder microsoft/wavlm-base-plus --device cuda

Likeness is the mean cosine between output frames; the effect on WER is measured by training on the held base, e.g.
`python recipes/asr_librispeech.py --quantize int8`.
"""

from __future__ import annotations

import argparse
import time

import torch

from speech_adapters import load_encoder
from speech_adapters.encoders.quantization import weight_bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default="tiny-wavlm", help="packaged name, local folder or hub id")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of the utterance")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    waveforms = torch.randn(1, int(16_000 * arguments.seconds), device=arguments.device)
    print(f"{'weights':8s} {'MiB':>8s} {'share':>6s} {'seconds':>8s} {'likeness':>9s}")
    expected = size = None
    for kind in (None, "int8", "int4", "nf4"):
        encoder = load_encoder(arguments.encoder, quantize=kind, device=arguments.device)
        times = []
        for _ in range(arguments.repeats):
            if waveforms.is_cuda:
                torch.cuda.synchronize()
            started = time.perf_counter()
            with torch.no_grad():
                output = encoder(waveforms).last_hidden_state
            if waveforms.is_cuda:
                torch.cuda.synchronize()
            times.append(time.perf_counter() - started)
        memory = weight_bytes(encoder.model)
        expected, size = (output, memory) if kind is None else (expected, size)
        likeness = torch.nn.functional.cosine_similarity(output, expected, dim=-1).mean()
        print(f"{kind or 'float32':8s} {memory / 2**20:8.1f} {memory / size:6.3f} {min(times):8.3f} {likeness:9.5f}")


if __name__ == "__main__":
    main()
