"""Run the tutorials as a reader would, top to bottom in an empty folder, and write what they print below their blocks.

make tutorials                        # all of them; minutes, since their trainings run in full
python docs/execute.py docs/start.md  # or some

A block of Python or of commands is followed by what it printed where a comment asks for it. The comment's word says
what the tests, which run the same blocks with shorter trainings, hold a committed output against:

    <!-- output -->     every character
    <!-- figures -->    everything but numbers
    <!-- heard -->      nothing but the code above it, whose hash the comment carries: what a model said is its own
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
import runpy
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from glob import glob
from pathlib import Path
from types import ModuleType
from unittest.mock import patch

from speech_adapters.adapters import ADAPTER_METHODS, PRESETS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "docs" / "start.md", *sorted((ROOT / "docs" / "tutorials").glob("*.md"))]

BLOCK = re.compile(
    r"(?:<!-- not run: (?P<reason>[^\n]+?) -->\n+)?^```(?P<kind>python|bash)\n(?P<code>.*?)^```$"
    r"(?:\n+<!-- (?P<word>output|figures|heard)(?: (?P<key>\w+))? -->\n```text\n(?P<said>.*?)^```$)?",
    re.M | re.S,
)
#: A command of this package, without pipes and the like: it needs no process of its own.
OURS = re.compile(r"(?:speech-adapters|python -m speech_adapters)\b[^|><&]*")
UPDATES = re.compile(r"(--updates |\bupdates=)\d+")
#: In a shell the command is this source tree's, installed or not.
SHELL = f'speech-adapters() {{ {shlex.quote(sys.executable)} -m speech_adapters.cli "$@"; }}\nset -eu\n'


class Reader:
    """Who reads one page: a Python session, a shell, and what they have started in the background."""

    def __init__(self, short: bool = False) -> None:
        """``short``: trainings take two updates."""
        self.short = short
        self.session = ModuleType("tutorial")  # a module, so that a page's classes pickle
        self.started: list[subprocess.Popen[bytes]] = []
        self.registries = contextlib.ExitStack()  # what a page adds to them goes with it

    def __enter__(self) -> Reader:
        sys.modules["tutorial"] = self.session
        for registry in (ADAPTER_METHODS, PRESETS):
            self.registries.enter_context(patch.dict(registry))
        return self

    def __exit__(self, *_: object) -> None:
        del sys.modules["tutorial"]
        self.registries.close()
        for process in self.started:
            process.terminate()
            process.wait()

    def run(self, kind: str, code: str, where: str) -> str:
        """Run a block; what it wrote to standard output.

        Raises:
            RuntimeError: a command failed.
        """
        code = UPDATES.sub(r"\g<1>2", code) if self.short else code
        lines = code.replace("\\\n", " ").splitlines()
        if kind == "bash" and not all(OURS.fullmatch(line) for line in lines):
            return self._shell(code)
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            if kind == "python":
                exec(compile(code, where, "exec"), self.session.__dict__)
            else:  # in this process, which has imported everything already
                for line in lines:
                    _command(shlex.split(line, comments=True))
        return printed.getvalue()

    def _shell(self, code: str) -> str:
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        if code.rstrip().endswith("&"):
            one = f"{SHELL}exec {shlex.quote(sys.executable)} -m speech_adapters.cli"
            words = re.sub(r"^speech-adapters", one, code.rstrip().removesuffix("&"), flags=re.M)
            self.started.append(subprocess.Popen(["bash", "-c", words], env=environment, stderr=subprocess.DEVNULL))
            return ""
        done = subprocess.run(["bash", "-c", SHELL + code], env=environment, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{code}\nexit status {done.returncode}\n{done.stderr}")
        return done.stdout


def _command(words: list[str]) -> None:
    from speech_adapters import cli

    words = [name for word in words for name in (sorted(glob(word)) if "*" in word else [word])]
    try:
        if words[0] == "speech-adapters":
            cli.main(words[1:])
        else:
            with patch.object(sys, "argv", words[2:]):
                runpy.run_module(words[2], run_name="__main__", alter_sys=True)
    except SystemExit as stop:
        if stop.code:
            raise RuntimeError(f"{shlex.join(words)}: exit status {stop.code}") from None


def outputs(page: Path, reader: Reader) -> Iterator[tuple[re.Match[str], str, str]]:
    """Each block of a page that has an output: its match, what it printed now, and the hash of the code up to it."""
    text, code = page.read_text(encoding="utf-8"), hashlib.sha256()
    for match in BLOCK.finditer(text):
        if match["reason"]:
            continue
        code.update(match["code"].encode())
        line = text.count("\n", 0, match.start("code"))
        printed = reader.run(match["kind"], match["code"], f"{page.name}, after line {line}")
        if match["word"]:
            yield match, tidy(printed), code.hexdigest()[:8]


def tidy(printed: str) -> str:
    """Paths from the working folder or the demo corpus, and no space at the ends of lines."""
    from speech_adapters.corpora.demo import demo_root

    lines = printed.replace(f"{Path.cwd()}/", "").replace(f"{demo_root()}/", "").splitlines()
    return "".join(f"{line.rstrip()}\n" for line in lines).strip("\n") + "\n"


def without_numbers(said: str) -> str:
    """What a training's summary says besides its numbers, whose widths move the columns."""
    return re.sub(r"[\s-]+", " ", re.sub(r"-?\d[\d.,]*(?: [KMGT]i?B\b)?", "#", said))


def execute(page: Path) -> str:
    """The page with the outputs that its blocks have now."""
    text, end = "", 0
    before = page.read_text(encoding="utf-8")
    with Reader() as reader:
        for match, printed, key in outputs(page, reader):
            mark = match["word"] + (f" {key}" if match["word"] != "output" else "")
            text += before[end : match.end("code")] + f"```\n\n<!-- {mark} -->\n```text\n{printed}```"
            end = match.end()
    return text + before[end:]


def main() -> int:
    """Execute the pages that are named, or all."""
    sys.path.insert(0, str(ROOT))
    from speech_adapters.files import write_text

    for page in map(Path.absolute, map(Path, sys.argv[1:])) if sys.argv[1:] else PAGES:
        print(page.name, file=sys.stderr)
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
            written = execute(page)
        write_text(page, written)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
