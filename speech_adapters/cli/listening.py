"""Arguments that the verbs share which hear recordings: the model, the audio, the windows."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speech_adapters.cli.manifest.arguments import channel
from speech_adapters.flags import DEVICE

if TYPE_CHECKING:
    from speech_adapters.data.windows import Windows
    from speech_adapters.inference.recordings import LeftOut, Recording
    from speech_adapters.model import SpeechAdapterModel


def add_model(parser: argparse.ArgumentParser, head: str) -> None:
    """``--adapter``, ``--head``, ``--encoder``, ``--device``; ``head`` says what stands in for a head."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--adapter",
        "-a",
        help="folder of a saved adapter, or of a run that holds one: its base and its head are found from it",
    )
    group.add_argument("--head", help=f"folder of a saved head (default: the one trained on the adapter; {head})")
    group.add_argument("--encoder", help="packaged name, local folder or hub id (default: the base of the adapter)")
    group.add_argument("--device", default="auto", help=DEVICE)
    group.add_argument("--precision", choices=["fp32", "bf16"], default="fp32", help="bf16: autocast")


def add_windows(parser: argparse.ArgumentParser) -> None:
    """How long recordings are cut, and how much is heard at once."""
    group = parser.add_argument_group("long recordings")
    group.add_argument("--window", type=float, default=20.0, metavar="SECONDS", help="longest window (default: 20)")
    group.add_argument(
        "--voice-activity",
        choices=["energy", "silero", "none"],
        default="energy",
        help="what finds the pauses to cut in: the level, Silero VAD (pip install speech-adapters[vad]), or nothing: "
        "all is heard, cut at equal distances (default: energy)",
    )
    group.add_argument(
        "--pause", type=float, default=0.5, metavar="SECONDS", help="silence that parts two stretches (default: 0.5)"
    )
    group.add_argument(
        "--batch-seconds",
        type=float,
        default=30.0,
        metavar="SECONDS",
        help="audio heard at once (default: 30; a GPU takes ten times as much)",
    )


def add_audio(parser: argparse.ArgumentParser, *, speakers: bool = True) -> None:
    """The recordings and which of their channels are heard."""
    parser.add_argument("audio", nargs="+", help='files, folders, patterns ("calls/*.wav"), or - for standard input')
    parser.add_argument("--channel", type=channel, help="of files with several: a number from 0, or mix")
    if speakers:
        parser.add_argument("--speakers", metavar="A,B", help="hear each channel, under these names: agent,customer")
    parser.add_argument("--download", action="store_true", help="fetch http(s) addresses")


def load_model(arguments: argparse.Namespace) -> SpeechAdapterModel:
    """The model that was asked for, on its device, in eval mode."""
    from speech_adapters.flags import use_device
    from speech_adapters.tasks.saved_model import load_saved

    use_device(arguments.device)
    return load_saved(arguments.adapter, arguments.head, arguments.encoder)


def windows_of(arguments: argparse.Namespace) -> Windows:
    """How recordings are cut."""
    from speech_adapters.data.windows import Windows

    return Windows(seconds=arguments.window, voice_activity=arguments.voice_activity, pause=arguments.pause)


@contextmanager
def left_out_is_told() -> Iterator[LeftOut]:
    """A place for what cannot be heard among many: all else is heard, and at the end, however it comes, each is named
    with the reason.

    Raises:
        AudioError: at the end, where something was left out.
    """
    import sys

    from speech_adapters.errors import AudioError, counted

    left_out: LeftOut = {}
    try:
        yield left_out
    finally:
        for name, reason in left_out.items():
            named = reason if reason.startswith(name) else f"{name}: {reason}"  # a window's tells its seconds with it
            print(f"left out: {named}", file=sys.stderr)
    if left_out:
        raise AudioError(f"{counted(len(left_out), 'recording')} left out, each named above with the reason.")


@contextmanager
def recordings_in(
    arguments: argparse.Namespace, inputs: Sequence[str], left_out: LeftOut | None = None
) -> Iterator[list[list[Recording]]]:
    """The recordings of each file that ``inputs`` name, headers checked; with a place for what is left out, of those
    that can be heard."""
    from speech_adapters.inference.recordings import recordings_of
    from speech_adapters.inference.sources import local_files

    speakers = getattr(arguments, "speakers", None)
    with local_files(inputs, download=arguments.download, left_out=left_out) as files:
        yield recordings_of(
            [path for _, path in files],
            names=[name for name, _ in files],
            channel=arguments.channel,
            speakers=None if speakers is None else [name.strip() for name in speakers.split(",")],
            left_out=left_out,
        )


@contextmanager
def hearing(arguments: argparse.Namespace, files: Sequence[Sequence[Recording]]) -> Iterator[dict[str, Any]]:
    """Options of the loop, with a bar of the seconds heard where a terminal looks on."""
    import sys

    from tqdm.auto import tqdm

    from speech_adapters.data.audio import audio_info
    from speech_adapters.errors import AudioError

    total = 0.0
    sources = [recording.source for file in files for recording in file]
    for path in (source for source in sources if isinstance(source, Path)):
        with suppress(AudioError):  # of a length that is only known by decoding; said where it is heard
            total += audio_info(path).duration
    with tqdm(
        total=round(total), unit="s", desc="hearing", delay=2, leave=False, disable=None, file=sys.stderr
    ) as bar:
        yield {"batch_seconds": arguments.batch_seconds, "precision": arguments.precision, "progress": bar.update}
