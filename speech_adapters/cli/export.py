"""A stock checkpoint that transformers opens without this package: base, adapter, head, processor, vocabulary.

  speech-adapters export --adapter adapters/lora --head heads/lora exported
  python -c "from transformers import pipeline as p; print(p('automatic-speech-recognition', 'exported')('a.wav'))"

The adapter is folded into the base's weights, so it must be one that can be: of the LoRA family, ia3, bitfit,
layer-norms, full. --peft writes an adapter and its head for PeftModel.from_pretrained instead.
"""

from __future__ import annotations

import argparse

from speech_adapters.cli.models import add_encoder, base_of
from speech_adapters.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The parts, and where to."""
    parser.add_argument("output", help="folder for the checkpoint, which must be new")
    parser.add_argument("--adapter", required=True, metavar="DIR", help="folder of a saved adapter")
    parser.add_argument("--head", metavar="DIR", help="folder of the head that goes along: CTC or classification")
    parser.add_argument("--peft", action="store_true", help="write a peft adapter, not a checkpoint")
    add_encoder(parser)


def run(arguments: argparse.Namespace) -> None:
    """Say where it lies and how to load it."""
    if arguments.peft and arguments.head is None:
        raise ConfigError("--peft needs --head: it goes along under the names that peft looks for")
    model = base_of(arguments.adapter, arguments.encoder)
    adapter = model.load_adapter(arguments.adapter)
    head = None if arguments.head is None else model.load_head(arguments.head)
    if arguments.peft:
        assert head is not None
        folder = model.save_peft(adapter, arguments.output, head)
        print(f"{folder}\nload it: peft.PeftModel.from_pretrained(base, {str(folder)!r})")
        return
    folder = model.save_folded(adapter, arguments.output, head)
    task = None if head is None else _PIPELINES.get(model.registry.head(head).config.head_type)
    opened = f"pipeline({task!r}, {str(folder)!r})" if task else f"AutoModel.from_pretrained({str(folder)!r})"
    print(f"{folder}\nload it: transformers.{opened}")


_PIPELINES = {"ctc": "automatic-speech-recognition", "classification": "audio-classification"}
"""Type of head -> the pipeline of transformers that runs it."""
