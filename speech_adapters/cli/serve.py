"""Serve adapters over HTTP, in the protocol of OpenAI's clients.

  speech-adapters serve --encoder tiny-wavlm --adapters runs/asr_librispeech/latest
  speech-adapters serve --adapters FOLDER --port 8000 --keys keys.yaml
  speech-adapters serve --adapters desk=runs/a phone=runs/b    # runs whose adapters have the same name
  speech-adapters serve --adapters drawer                  # a bank: every name, and each version with a tag
  curl http://127.0.0.1:8000/v1/audio/transcriptions -F model=NAME -F file=@call.wav

FOLDER is a run, any folder that holds adapters/NAME and heads/NAME, a bank, or bank:NAME@TAG. NAME=FOLDER serves the
one model in it, or a run's own adapter, as NAME, and others as NAME-... Requests of different adapters, heads and
tasks share batches. A page to try it is at http://127.0.0.1:8000/. Needs speech-adapters[serve].
"""

from __future__ import annotations

import argparse

from speech_adapters.flags import DEVICE


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The models, the address, the limits."""
    group = parser.add_argument_group("models")
    group.add_argument("--adapters", "-a", metavar="FOLDER", nargs="+", default=[], help="runs, folders of "
                       "adapters/NAME and heads/NAME, banks, bank:NAME@TAG; NAME=FOLDER to name it")  # fmt: skip
    group.add_argument("--encoder", help="packaged name, local folder or hub id (default: the adapters' base)")
    group.add_argument("--device", default="auto", help=f"{DEVICE}; or several, a worker on each: cuda:0,cuda:1")
    group.add_argument("--precision", choices=["fp32", "bf16"], default="fp32", help="bf16: autocast")
    group.add_argument("--memory", type=float, default=2.0, metavar="GB", help="for adapters and heads (default: 2)")
    group.add_argument("--uploads", metavar="FOLDER", help="let clients add adapters, which are kept there")
    group = parser.add_argument_group("address")
    group.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1: this machine)")
    group.add_argument("--port", type=int, default=8000, help="(default: 8000; 0: any that is free)")
    group.add_argument("--host-name", action="append", default=[], metavar="NAME", help="a name under which clients "
                       "reach the server, such as speech.example; * for any")  # fmt: skip
    group.add_argument(
        "--origin", action="append", default=[], help="a web page that may ask: https://intranet.example"
    )
    group = parser.add_argument_group("limits")
    group.add_argument("--keys", metavar="FILE", help="YAML of API keys; without it, everyone may ask")
    group.add_argument("--max-body", type=float, default=100, metavar="MB", help="of one request (default: 100)")
    group.add_argument("--max-seconds", type=float, default=14400, help="of one recording (default: 14400)")
    group.add_argument("--max-requests", type=int, default=256, help="taken at once (default: 256)")
    group.add_argument("--max-waiting", type=float, default=600, metavar="SECONDS", help="of audio that may wait for "
                       "the encoder (default: 600)")  # fmt: skip
    group.add_argument("--max-sessions", type=int, default=32, help="live sessions at once (default: 32)")
    group.add_argument("--timeout", type=float, default=300, metavar="SECONDS", help="of one request (default: 300)")
    group.add_argument("--log-requests", action="store_true", help="log which client asked which model")
    group.add_argument("--no-page", action="store_true", help="no page at /")
    group = parser.add_argument_group("batches")
    group.add_argument("--batch-seconds", type=float, default=60.0, help="audio heard at once (default: 60)")
    group.add_argument("--deadline", type=float, default=10.0, metavar="MS", help="a window's wait for others while "
                       "the encoder is free (default: 10)")  # fmt: skip


def run(arguments: argparse.Namespace) -> None:
    """Serve until Ctrl-C or SIGTERM; what was taken is finished."""
    from speech_adapters.errors import ConfigError

    try:
        from speech_adapters.serving.http.server import serve
    except ModuleNotFoundError as error:
        raise ConfigError(f"{error.name} is not installed: pip install 'speech-adapters[serve]'") from error
    serve(arguments)
