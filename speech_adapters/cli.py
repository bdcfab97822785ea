"""``speech-adapters``: look before you train, and use what was trained. Training itself is in ``recipes/``.

speech-adapters encoders                          packaged encoders and their sizes
speech-adapters adapters --encoder tiny-wavlm     every preset: where it acts and what it trains
speech-adapters check train.jsonl test.jsonl      decode all audio, find all that training would trip over
speech-adapters prepare ravdess FOLDER manifests  a corpus as its publisher lays it out -> manifests
speech-adapters transcribe --encoder tiny-wavlm --adapter DIR --head DIR call.wav ...
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from speech_adapters.config import run_main
from speech_adapters.corpora import CORPORA


def encoders(arguments: argparse.Namespace) -> None:
    """List the packaged encoders."""
    from speech_adapters.encoders import load_encoder, packaged_encoders

    for name in packaged_encoders():
        encoder = load_encoder(name)
        print(f"{encoder.extra_repr()}, {sum(p.numel() for p in encoder.parameters()):,} parameters")


def adapters(arguments: argparse.Namespace) -> None:
    """Show every preset on an encoder."""
    from speech_adapters.adapters import PRESETS
    from speech_adapters.model import SpeechAdapterModel

    model = SpeechAdapterModel.from_pretrained(arguments.encoder)
    print(model.encoder)
    for name in PRESETS:
        model.add_adapter(name, name, arguments.task)
        count = model.count_parameters()
        print(f"\n{name}: {count['trainable']:,} trainable ({count['percent']:.2f} %)")
        for line in model.registry.adapter(name).describe():
            print(f"  {line}")
        model.delete_adapter(name)


def check(arguments: argparse.Namespace) -> int:
    """Print all that training or scoring would trip over; 2 where there is anything."""
    from speech_adapters.data.corpus_check import check_corpus, read_all

    manifests, findings = read_all(arguments.manifests)
    for manifest in manifests:
        print(f"{manifest.name}: {manifest.summary()}")
    findings += check_corpus(manifests)
    for finding in findings:
        print(finding, file=sys.stderr)
    print(f"{len(findings)} findings" if findings else "nothing found: audio decodes, splits share no speaker")
    return 2 if findings else 0


def prepare(arguments: argparse.Namespace) -> None:
    """Write the manifests of a corpus."""
    from speech_adapters import corpora
    from speech_adapters.data.manifest import Manifest

    written = getattr(corpora, f"prepare_{arguments.corpus}")(arguments.root, arguments.output)
    for path in written.values() if isinstance(written, dict) else [written]:
        print(f"{path}: {Manifest.read(path).summary()}")


def transcribe(arguments: argparse.Namespace) -> None:
    """Print what is said in each audio file."""
    import torch

    from speech_adapters.data.audio import check_waveform, read_audio
    from speech_adapters.errors import ConfigError
    from speech_adapters.heads.ctc import CTCHeadModule
    from speech_adapters.model import SpeechAdapterModel
    from speech_adapters.tasks.asr import use_own_ctc_head
    from speech_adapters.tasks.predict import head_output

    waveforms = [read_audio(path, channel="mix") for path in arguments.audio]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = SpeechAdapterModel.from_pretrained(arguments.encoder, device=device)
    if arguments.adapter:
        model.load_adapter(arguments.adapter)
    model.load_head(arguments.head) if arguments.head else use_own_ctc_head(model)
    head = model.eval().head
    if not isinstance(head, CTCHeadModule):
        raise ConfigError(f"--head {arguments.head}: does not write text; give the folder of a CTC head.")
    for path, waveform in zip(arguments.audio, waveforms, strict=True):
        check_waveform(waveform, path, model.encoder.receptive_field)
        with torch.no_grad():
            output = model(waveform.unsqueeze(0).to(device))
        print(f"{path}\t{head.predict(head_output(output))[0]}")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line ``argv``, by default the process's own, and exit."""
    parser = argparse.ArgumentParser(
        "speech-adapters", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="command")
    commands.add_parser("encoders", help="list the packaged encoders").set_defaults(run=encoders)
    command = commands.add_parser("adapters", help="show every adapter preset on an encoder")
    command.add_argument("--encoder", default="tiny-wavlm", help="packaged name, local folder or hub id")
    command.add_argument("--task", default="asr", choices=["asr", "emotion", "speaker", "intent"])
    command.set_defaults(run=adapters)
    command = commands.add_parser("check", help="find all that training or scoring would trip over")
    command.add_argument("manifests", nargs="+", metavar="manifest.jsonl")
    command.set_defaults(run=check)
    command = commands.add_parser("prepare", help="write the manifests of a corpus")
    command.add_argument("corpus", choices=[name for name in CORPORA if name != "demo"])
    command.add_argument(
        "root", help="folder it was unpacked in; the layout stands in speech_adapters/corpora/<corpus>.py"
    )
    command.add_argument("output", help="folder for the manifests")
    command.set_defaults(run=prepare)
    command = commands.add_parser("transcribe", help="recognise audio files")
    command.add_argument("--encoder", default="tiny-wavlm", help="packaged name, local folder or hub id")
    command.add_argument("--adapter", help="folder of a saved adapter")
    command.add_argument("--head", help="folder of a saved CTC head; without it, the checkpoint's own")
    command.add_argument("audio", nargs="+", help="audio files; several channels are mixed")
    command.set_defaults(run=transcribe)
    arguments = parser.parse_args(argv)
    run_main(lambda: arguments.run(arguments))


if __name__ == "__main__":
    main()
