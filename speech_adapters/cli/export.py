"""A stock checkpoint that transformers opens without this package: base, adapter, head, processor, vocabulary.

  speech-adapters export --adapter runs/asr_librispeech/latest exported
  speech-adapters export --adapter adapters/lora --head heads/lora exported

The adapter is folded into the base's weights, so it must be one that can be: of the LoRA family, ia3, bitfit,
layer-norms, full. --peft writes an adapter and its head for PeftModel.from_pretrained instead.
"""

from __future__ import annotations

import argparse

from speech_adapters.cli.models import add_encoder
from speech_adapters.errors import ConfigError

PIPELINES = {"ctc": "automatic-speech-recognition", "classification": "audio-classification"}
"""Type of head -> the pipeline of transformers that runs it."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The parts, and where to."""
    parser.add_argument("output", help="folder for the checkpoint, which must be new")
    parser.add_argument("--adapter", "-a", required=True, help="folder of a saved adapter, or of a run that holds one")
    parser.add_argument("--head", help="folder of the head (default: the one trained on the adapter)")
    parser.add_argument("--peft", action="store_true", help="write a peft adapter, not a checkpoint")
    add_encoder(parser)


def run(arguments: argparse.Namespace) -> None:
    """Say where it lies and how to load it."""
    from speech_adapters.model import SpeechAdapterModel

    model = SpeechAdapterModel.from_adapter(arguments.adapter, head=arguments.head, encoder=arguments.encoder)
    adapter, head = next(iter(model.active_adapters), None), model.head
    if head is None or model.active_head is None:
        raise ConfigError(f"{arguments.adapter}: no head is near it; name it with --head, or fold the adapter alone")
    if arguments.peft:
        if adapter is None:
            raise ConfigError(f"{arguments.adapter}: no adapter there, which --peft writes")
        folder = model.save_peft(adapter, arguments.output, model.active_head)
        print(f"{folder}\nload it: peft.PeftModel.from_pretrained(base, {str(folder)!r})")
        return
    folder = model.save_folded(adapter, arguments.output, model.active_head)
    task = PIPELINES.get(head.config.head_type)
    opened = f"pipeline({task!r}, {str(folder)!r})" if task else f"AutoModel.from_pretrained({str(folder)!r})"
    print(f"{folder}\nload it: transformers.{opened}")
