"""A file for other programs: a checkpoint that transformers opens, a peft adapter, or an ONNX graph.

  speech-adapters export --adapter runs/asr_librispeech/latest exported
  speech-adapters export --adapter adapters/lora --head heads/lora exported
  speech-adapters export --adapter runs/a --onnx --int8 edge
  speech-adapters export --adapter runs/b --onnx edge/b.onnx_adapter

Base, adapter and head become a stock checkpoint with processor and vocabulary. The adapter is folded into the base's
weights, so it must be one that can be: of the LoRA family, ia3, bitfit, layer-norms, full. --peft writes an adapter
and its head for PeftModel.from_pretrained instead. --onnx writes a graph for onnxruntime and sherpa-onnx, with any
adapter; to <folder of a graph>/<name>.onnx_adapter it writes a LoRA adapter and its head, to be used on that graph.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from speech_adapters.cli.models import add_encoder, told_of
from speech_adapters.errors import ConfigError

if TYPE_CHECKING:
    from speech_adapters.model import SpeechAdapterModel

PIPELINES = {"ctc": "automatic-speech-recognition", "classification": "audio-classification"}
"""Type of head -> the pipeline of transformers that runs it."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The parts, and where to."""
    parser.add_argument(
        "output", help="folder for the checkpoint or graph, which must be new; or an .onnx_adapter file"
    )
    parser.add_argument("--adapter", "-a", required=True, help="folder of a saved adapter, or of a run that holds one")
    parser.add_argument("--head", help="folder of the head (default: the one trained on the adapter)")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--peft", action="store_true", help="write a peft adapter, not a checkpoint")
    form.add_argument("--onnx", action="store_true", help="write an ONNX graph, or an adapter for one that is there")
    parser.add_argument("--int8", action="store_true", help="with --onnx: write model.int8.onnx too")
    parser.add_argument(
        "--slots",
        metavar="NAMES",
        help="with --onnx: projections that other LoRA adapters may change, such as q_proj,v_proj (default: those of "
        "this adapter)",
    )
    add_encoder(parser)


def run(arguments: argparse.Namespace) -> None:
    """Say where it lies and how to load it."""
    from speech_adapters.model import SpeechAdapterModel

    if not arguments.onnx and (arguments.int8 or arguments.slots):
        raise ConfigError(f"{'--int8' if arguments.int8 else '--slots'} goes with --onnx; add it, or leave it out.")
    model = SpeechAdapterModel.from_adapter(arguments.adapter, head=arguments.head, encoder=arguments.encoder)
    adapter, head = next(iter(model.active_adapters), None), model.head
    if head is None or model.active_head is None:
        raise ConfigError(f"{arguments.adapter}: no head is near it; name it with --head, or fold the adapter alone")
    if arguments.onnx:
        print(_onnx(model, adapter, arguments))
        return
    if arguments.peft:
        if adapter is None:
            raise ConfigError(f"{arguments.adapter}: no adapter there, which --peft writes")
        with told_of(arguments.adapter):
            folder = model.save_peft(adapter, arguments.output, model.active_head)
        print(f"{folder}\nload it: peft.PeftModel.from_pretrained(base, {str(folder)!r})")
        return
    with told_of(arguments.adapter):
        folder = model.save_folded(adapter, arguments.output, model.active_head)
    task = PIPELINES.get(head.config.head_type)
    opened = f"pipeline({task!r}, {str(folder)!r})" if task else f"AutoModel.from_pretrained({str(folder)!r})"
    print(f"{folder}\nload it: transformers.{opened}")


def _onnx(model: SpeechAdapterModel, adapter: str | None, arguments: argparse.Namespace) -> str:
    """Write the graph or the adapter for one; returns what to say."""
    output, head = arguments.output, model.active_head
    if output.endswith(".onnx_adapter"):
        if adapter is None:
            raise ConfigError(f"{arguments.adapter}: no adapter there, which an .onnx_adapter file holds")
        if arguments.int8 or arguments.slots:
            raise ConfigError(f"{output}: --int8 and --slots are the graph's; leave them out for an adapter.")
        file = model.save_onnx_adapter(adapter, output, head)
        return f"{file}\nload it: onnxruntime.LoraAdapter().Load({str(file)!r}), RunOptions().add_active_adapter"
    slots = None if arguments.slots is None else arguments.slots.split(",")
    folder = model.save_onnx(adapter, output, head, slots=slots, int8=arguments.int8)
    lines = [str(folder)]
    for file in sorted(folder.glob("*.onnx")):
        lines.append(f"load it: onnxruntime.InferenceSession({str(file)!r})  ({file.stat().st_size / 1e6:.1f} MB)")
    if (folder / "tokens.txt").is_file():
        if model.encoder.normalize:
            tokens = str(folder / "tokens.txt")
            lines.append(
                f"or: sherpa_onnx.OfflineRecognizer.from_omnilingual_asr_ctc({str(file)!r}, tokens={tokens!r})"
            )
        else:
            lines.append(
                "not for sherpa-onnx, which brings waveforms to unit variance: this encoder hears them as they are"
            )
    return "\n".join(lines)
