"""A base in 8 and 4 bits against the same in float32: memory of its weights, time, likeness of its output.

    python benchmarks/quantized_base.py                                  # tiny-wavlm
    python benchmarks/quantized_base.py --encoder microsoft/wavlm-base-plus

Likeness is the mean cosine between output frames; the effect on WER is measured by training on the held base, e.g.
`python recipes/asr_librispeech.py --quantize int8`.
"""

from __future__ import annotations

import torch
from material import encoder_of
from timing import Record, in_turns, parse, parser_of, the_device

from speech_adapters.encoders.quantization import weight_bytes

KINDS = ("float32", "int8", "int4", "nf4")


@torch.no_grad()
def main() -> None:
    parser = parser_of(__doc__, rounds=5)
    parser.add_argument("--encoder", default="tiny-wavlm", help="packaged name, local folder or hub id, or base")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of the utterance")
    arguments, device = parse(parser, {"seconds": 1.0}), the_device()
    record = Record(arguments, device)
    waveforms = torch.randn(1, int(16_000 * arguments.seconds), device=device)
    encoders = {kind: encoder_of(arguments.encoder).to(device) for kind in KINDS}
    for kind in KINDS[1:]:
        encoders[kind].quantize(kind)
    rows = in_turns({kind: (lambda kind=kind: encoders[kind](waveforms)) for kind in KINDS}, arguments.rounds, device)
    outputs = {kind: encoder(waveforms).last_hidden_state for kind, encoder in encoders.items()}
    for kind, row in rows.items():
        row["megabytes"] = weight_bytes(encoders[kind].model) / 1e6
        alike = torch.nn.functional.cosine_similarity(outputs[kind], outputs["float32"], dim=-1)
        row["likeness"] = float(alike.mean())
    record.add(f"{arguments.encoder}, forward, 1 x {arguments.seconds:g} s", rows, "float32")
    record.write()


if __name__ == "__main__":
    main()
