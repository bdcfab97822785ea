"""Embed the voices of recordings of any length.

  speech-adapters embed --adapter runs/speaker_verification/latest voices/ --output voices.npz

The file holds the arrays ids (the recordings' names) and embeddings (N, E); .safetensors is written too. A long
recording's embedding is the mean over its windows, weighted by frames. Without a head, or with one that tells no
speakers: the mean of the features. A recording that cannot be read or is without speech is left out: the others are
written, and those left out named on standard error at the end, each with the reason (exit code 2).
"""

from __future__ import annotations

import argparse

from speech_adapters.cli.listening import add_audio, add_model, add_windows


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The recordings, the model and the file."""
    add_audio(parser, speakers=False)
    parser.add_argument("--output", "-o", required=True, help="file of embeddings to write: .npz or .safetensors")
    parser.add_argument("--overwrite", action="store_true", help="replace a file that is there already")
    add_model(parser, "without any, the mean of the features")
    add_windows(parser)


def run(arguments: argparse.Namespace) -> None:
    """Write the embeddings of all recordings."""
    from pathlib import Path

    import torch

    from speech_adapters.cli.listening import hearing, left_out_is_told, load_model, recordings_in, windows_of
    from speech_adapters.cli.outputs import check_place
    from speech_adapters.data.embeddings import Embeddings
    from speech_adapters.errors import ConfigError, counted
    from speech_adapters.heads.speaker import SpeakerHeadModule
    from speech_adapters.inference.hearing import active_head
    from speech_adapters.inference.utterances import embed

    path, windows = Path(arguments.output), windows_of(arguments)
    if path.suffix not in (".npz", ".safetensors"):
        raise ConfigError(f"--output {path}: embeddings are kept in .npz or .safetensors files; give one of these.")
    if path.exists() and not arguments.overwrite:
        raise ConfigError(f"{path} is there already; choose another --output, or --overwrite.")
    check_place(path.parent)
    with left_out_is_told() as left_out, recordings_in(arguments, arguments.audio, left_out) as files:
        model = load_model(arguments)
        left = ""
        if arguments.head is None and model.head is not None and not isinstance(model.head, SpeakerHeadModule):
            left = f", the means of the features: {active_head(model)} tells no speakers"
            model.set_head(None)
        with hearing(arguments, files) as options:
            vectors = list(embed(model, [file[0] for file in files], windows, left_out=left_out, **options))
        if vectors:
            names = tuple(file[0].name for file in files if file[0].name not in left_out)
            found = Embeddings(names, torch.stack(vectors), str(path))
            print(f"{found.save(path)}: {counted(len(found), 'embedding')} of {found.vectors.shape[1]} values{left}")
