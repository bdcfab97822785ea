"""Print what is said in audio files."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The model's parts and the files."""
    parser.add_argument("--encoder", default="tiny-wavlm", help="packaged name, local folder or hub id")
    parser.add_argument("--adapter", help="folder of a saved adapter")
    parser.add_argument("--head", help="folder of a saved CTC head; without it, the checkpoint's own")
    parser.add_argument("audio", nargs="+", help="audio files; several channels are mixed")


def run(arguments: argparse.Namespace) -> None:
    """Print a line per file: its path, a tab, the text."""
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
