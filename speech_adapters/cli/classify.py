"""Tell the class of recordings of any length: emotion, keyword, intent, whatever the head was trained for.

  speech-adapters classify --adapter runs/emotion_recognition/latest call.wav
  speech-adapters classify --adapter DIR calls/ --speakers agent,customer --format json

A line per recording (and channel, with --speakers): its name, the class, its probability; as json, the probability of
each class. Long recordings are told by the mean of the head's logits over their windows, weighted by frames.
A recording that cannot be read or is without speech is left out: the others are told, and those left out named on
standard error at the end, each with the reason (exit code 2).
"""

from __future__ import annotations

import argparse

from speech_adapters.cli.listening import add_audio, add_model, add_windows


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The recordings and the model."""
    add_audio(parser)
    parser.add_argument("--format", "-f", default="tsv", choices=["tsv", "json"], help="default: tsv")
    add_model(parser, "an adapter needs one")
    add_windows(parser)


def run(arguments: argparse.Namespace) -> None:
    """Print each recording's class as soon as it is there."""
    import json

    from speech_adapters.cli.listening import hearing, left_out_is_told, load_model, recordings_in, windows_of
    from speech_adapters.inference.utterances import classify

    windows = windows_of(arguments)
    with left_out_is_told() as left_out, recordings_in(arguments, arguments.audio, left_out) as files:
        model = load_model(arguments)
        channels = [recording for file in files for recording in file]
        with hearing(arguments, files) as options:
            for found in classify(model, channels, windows, left_out=left_out, **options):
                if arguments.format == "json":
                    print(json.dumps(found.to_dict(), ensure_ascii=False), flush=True)
                    continue
                speaker = [] if found.speaker is None else [found.speaker]
                best = max(found.probabilities.values())
                print(found.name, *speaker, found.label, f"{best:.4f}", sep="\t", flush=True)
