"""An encoder under an adapter in torch, in onnxruntime and in onnxruntime's 8 bits: time on a CPU, size, WER.

    python benchmarks/onnx_export.py                                       # WavLM Base size, random weights, LoRA
    python benchmarks/onnx_export.py --adapter runs/asr_librispeech/latest # and the WER of its test set, of each
    python benchmarks/onnx_export.py --adapter RUN --manifest test.jsonl --utterances 100

Everything runs on the CPU. WER is of the best path, one utterance at a time; with --adapter by default on
``asr_librispeech_test`` of ``$SPEECH_ADAPTERS_DATA``.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import onnxruntime as ort
import torch
from material import encoder_of
from timing import Record, in_turns, parse, parser_of

from speech_adapters import CTCHead, Manifest, SpeechAdapterModel
from speech_adapters.heads.decoding import greedy_decode
from speech_adapters.metrics.wer import word_error_rate

#: (1, samples) -> logits (1, T, V).
Forward = Callable[[torch.Tensor], torch.Tensor]


def model_of(arguments: argparse.Namespace) -> SpeechAdapterModel:
    """The adapter's model, or a fresh LoRA and CTC head on the encoder."""
    if arguments.adapter:
        return SpeechAdapterModel.from_adapter(arguments.adapter)
    model = SpeechAdapterModel(encoder_of(arguments.encoder))
    model.add_adapter("lora", "lora")
    model.add_head("asr", CTCHead())
    return model.eval()


def in_onnxruntime(path: Path, threads: int) -> Forward:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 3
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda waveforms: torch.from_numpy(session.run(["logits"], {"waveforms": waveforms.numpy()})[0])


def recognised(forward: Forward, model: SpeechAdapterModel, manifest: Manifest) -> dict[str, float]:
    """WER of a forward's best paths, and the 95 % interval by speaker."""
    head = model.head.config
    texts = []
    for utterance in manifest:
        logits = forward(utterance.waveform()[None])
        texts += greedy_decode(logits, torch.tensor([logits.shape[1]]), head.vocabulary)
    references, speakers, ids = zip(*((u.text, u.speaker, u.id) for u in manifest), strict=True)
    wer = word_error_rate(references, texts, speakers, ids, normalizer=head.normalizer).wer
    return {"wer": wer.value, "low": wer.low, "high": wer.high}


@torch.inference_mode()
def main() -> None:
    parser = parser_of(__doc__, rounds=9)
    parser.add_argument("--encoder", default="base", help="packaged name, folder or hub id, or base")
    parser.add_argument("--adapter", help="folder of an adapter with a CTC head, or of a run, in place of --encoder")
    parser.add_argument("--manifest", type=Path, help="what to take the WER of")
    parser.add_argument("--utterances", type=int, help="no more than so many of it, evenly spread")
    parser.add_argument("--seconds", type=float, default=8.0)
    arguments, device = parse(parser, {"encoder": "tiny-wavlm", "seconds": 1.0}), torch.device("cpu")
    record, model = Record(arguments, device), model_of(arguments)
    data = os.environ.get("SPEECH_ADAPTERS_DATA")
    manifest = arguments.manifest
    if manifest is None and arguments.adapter and data:
        manifest = Path(data, "manifests", "asr_librispeech_test.jsonl")
    with tempfile.TemporaryDirectory() as temporary:
        name = next(iter(model.active_adapters), None)
        folder = model.save_onnx(name, Path(temporary, "graph"), head=model.active_head, int8=True)
        files = {"onnx": folder / "model.onnx", "onnx int8": folder / "model.int8.onnx"}
        forwards: dict[str, Forward] = {"torch": lambda waveforms: model(waveforms).logits}
        forwards |= {name: in_onnxruntime(path, arguments.threads) for name, path in files.items()}
        sizes = {name: path.stat().st_size / 1e6 for name, path in files.items()}
    waveforms = torch.randn(1, int(arguments.seconds * 16_000))
    ways = {name: (lambda own=own: own(waveforms)) for name, own in forwards.items()}
    rows = in_turns(ways, arguments.rounds, device)
    for name, row in rows.items():
        row["faster"] = 1 / row["ratio"]
        row |= {"megabytes": sizes[name]} if name in sizes else {}
    title = f"{arguments.adapter or arguments.encoder}, forward, 1 x {arguments.seconds:g} s, fp32"
    if manifest is not None:
        heard = Manifest.read(manifest)
        step = max(1, len(heard) // (arguments.utterances or len(heard)))
        heard = Manifest(list(heard)[::step][: arguments.utterances])
        for name, forward in forwards.items():
            rows[name] |= recognised(forward, model, heard)
            rows[name]["wer_change"] = rows[name]["wer"] / rows["torch"]["wer"] - 1
        title += f"; WER of {len(heard)} utterances of {manifest.stem}"
    record.add(title, rows, "torch")
    record.write()


if __name__ == "__main__":
    main()
