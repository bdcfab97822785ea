"""Tell how alike the voices of two recordings are.

  speech-adapters verify --adapter runs/speaker_verification/latest enrolled.wav call.wav
  speech-adapters verify --adapter DIR monday.wav tuesday.wav wednesday.wav call.wav

The last recording is compared with the speaker of all before it. Prints the cosine of the embeddings and, where there
is a calibration (the head's own, or --calibration), the natural log-likelihood ratio: above 0, one speaker.
"""

from __future__ import annotations

import argparse
import sys

from speech_adapters.cli.listening import add_audio, add_model, add_windows


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The recordings and the model."""
    add_audio(parser, speakers=False)
    parser.add_argument("--calibration", help="calibration.json of evaluate verification, in place of the head's own")
    add_model(parser, "without any, the mean of the features")
    add_windows(parser)


def run(arguments: argparse.Namespace) -> None:
    """Print score and log-likelihood ratio."""
    from contextlib import ExitStack

    import torch

    from speech_adapters.cli.listening import hearing, load_model, recordings_in, windows_of
    from speech_adapters.errors import ConfigError
    from speech_adapters.inference.utterances import calibration_of, embed, verify
    from speech_adapters.metrics.calibration import Calibration

    windows = windows_of(arguments)
    given = None if arguments.calibration is None else Calibration.load(arguments.calibration)
    with ExitStack() as stack:  # one by one: a recording may be given twice, and the last one is the one to test
        named = [stack.enter_context(recordings_in(arguments, [path])) for path in arguments.audio]
        files = [file for group in named for file in group]
        if len(files) < 2:
            raise ConfigError("give two recordings or more: those of the speaker, and the one to test.")
        if len(named[-1]) > 1:  # a folder or pattern: who gave it may not know which of it comes last
            print(
                f"compared: {files[-1][0].name}, with the speaker of the {len(files) - 1} before it", file=sys.stderr
            )
        model = load_model(arguments)
        with hearing(arguments, files) as options:
            *enrolled, tested = embed(model, [file[0] for file in files], windows, **options)
    found = verify(torch.stack(enrolled), tested, given or calibration_of(model))
    print(f"score\t{found.score:.4f}")
    if found.llr is not None:
        print(f"llr\t{found.llr:.4f}")
