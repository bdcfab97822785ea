"""Write down what is said in recordings of any length.

  speech-adapters transcribe --adapter runs/asr_librispeech/latest call.wav
  speech-adapters transcribe --adapter DIR calls/ --format srt,json --output transcripts
  speech-adapters transcribe --adapter DIR call.wav --speakers agent,customer --format vtt
  speech-adapters transcribe --adapter DIR noisy.wav --adapt entropy
  speech-adapters transcribe --encoder facebook/wav2vec2-base-960h --beam 50 --lm 4-gram.arpa.gz talk.mp3

The adapter's folder tells its base and its head. Without --output, one format is printed as each recording ends; as
text, a line per recording: its name, a tab, what is said. With --output, each recording has a file per format.
A recording that cannot be read is left out: the others are written down, and those left out named on standard error at
the end, each with the reason (exit code 2). Of one without speech the text is empty.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from speech_adapters.cli.listening import add_audio, add_model, add_windows

if TYPE_CHECKING:
    from speech_adapters.heads.decoding import BeamSearch
    from speech_adapters.model import SpeechAdapterModel

FORMATS = ("text", "json", "srt", "vtt", "ctm", "trn")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The recordings, the model, the decoding and what is written."""
    add_audio(parser)
    parser.add_argument(
        "--format", "-f", default="text", metavar="FORMAT", help=f"{', '.join(FORMATS)}, or several: srt,json"
    )
    parser.add_argument("--output", "-o", help="folder for a file per recording and format")
    parser.add_argument("--overwrite", action="store_true", help="replace files that are there already")
    add_model(parser, "without an adapter, the checkpoint's own CTC head")
    parser.add_argument(
        "--adapt",
        choices=["entropy", "speaker-code"],
        help="adapt the model to each recording before it is written down, and forget it after it "
        "(docs/unlabelled.md says when that helps): entropy, SUTA; speaker-code, a code of the speaker",
    )
    group = parser.add_argument_group("decoding")
    group.add_argument("--beam", type=int, metavar="SIZE", help="beam search; without it, the best path")
    group.add_argument("--lm", help="word n-gram model for the beam search: ARPA, also gzipped, or KenLM binary")
    group.add_argument("--lexicon", help="file of words, one per line, for a KenLM binary")
    group.add_argument("--alpha", type=float, default=0.5, help="weight of the language model (default: 0.5)")
    group.add_argument("--beta", type=float, default=1.5, help="added for each word (default: 1.5)")
    group.add_argument("--hotwords", metavar="A,B", help="words that are more likely than the language model thinks")
    group.add_argument(
        "--hotword-weight", type=float, default=10.0, help="added each time one is said, as a logarithm (default: 10)"
    )
    add_windows(parser)


def run(arguments: argparse.Namespace) -> None:
    """Print or write the transcript of each recording as soon as it is there."""
    from speech_adapters.cli.listening import hearing, left_out_is_told, load_model, recordings_in, windows_of
    from speech_adapters.cli.outputs import check_formats, outputs
    from speech_adapters.files import write_text
    from speech_adapters.inference.formats import FORMATS as WRITERS
    from speech_adapters.inference.transcripts import transcribe

    formats = check_formats(arguments.format, FORMATS, arguments.output)
    windows = windows_of(arguments)
    with left_out_is_told() as left_out, recordings_in(arguments, arguments.audio, left_out) as files:
        names = [file[0].name for file in files]
        suffixes = [WRITERS[name][0] for name in formats]
        places = outputs(arguments.output, names, suffixes, overwrite=arguments.overwrite)
        model = load_model(arguments)
        if model.head is None and model.active is None:
            from speech_adapters.tasks.asr import use_own_ctc_head

            use_own_ctc_head(model)
        beam = _beam(arguments, model)
        with hearing(arguments, files) as options:
            options["left_out"] = left_out
            if arguments.adapt is None:
                found = transcribe(model, files, windows, beam=beam, **options)
            else:
                from speech_adapters.unlabelled import Entropy, SpeakerCode, transcribe_adapted

                method = {"entropy": Entropy, "speaker-code": SpeakerCode}[arguments.adapt]()
                found = transcribe_adapted(model, files, method, windows, beam=beam, **options)
            for transcript in found:
                if arguments.output is None:
                    said = f"{transcript.name}\t{transcript.text}\n" if formats == ["text"] else None
                    print(said or WRITERS[formats[0]][1](transcript), end="", flush=True)
                    continue
                for name, path in zip(formats, places[transcript.name], strict=True):
                    write_text(path, WRITERS[name][1](transcript))
                    print(path, flush=True)


def _beam(arguments: argparse.Namespace, model: SpeechAdapterModel) -> BeamSearch | None:
    from speech_adapters.errors import ConfigError
    from speech_adapters.heads.ctc import CTCHeadModule
    from speech_adapters.heads.decoding import BeamSearch

    if arguments.beam is None:
        for flag in ("lm", "lexicon", "hotwords"):
            if getattr(arguments, flag) is not None:
                raise ConfigError(f"--{flag} works in the beam search only; add --beam, such as --beam 50.")
        return None
    head = model.head
    if not isinstance(head, CTCHeadModule):
        return None  # the loop says what is wrong
    return BeamSearch(
        head.config.vocabulary,
        beam_size=arguments.beam,
        lm_path=arguments.lm,
        lexicon_path=arguments.lexicon,
        alpha=arguments.alpha,
        beta=arguments.beta,
        hotwords=() if arguments.hotwords is None else [word.strip() for word in arguments.hotwords.split(",")],
        hotword_weight=arguments.hotword_weight,
    )
