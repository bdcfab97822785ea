"""Every example in the documents runs: Python blocks from top to bottom, shell commands one by one.

They run in a working folder with small stand-ins for the files that they name. A recipe that would train reads its
command line and checks it, no more: the recipe's own tests train. A block that cannot run has the reason in a comment
before it: ``<!-- not run: needs the network -->``.
"""

from __future__ import annotations

import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from types import ModuleType
from unittest.mock import patch

import pytest
import small_models
import soundfile
from small_corpora import speak
from small_models import small_model

from speech_adapters import ClassificationHead, CTCHead, SpeakerHead, SpeechAdapterModel, cli, config
from speech_adapters.adapters import ADAPTER_METHODS
from speech_adapters.bank.bank import Bank
from speech_adapters.data.manifest import Manifest, Utterance
from speech_adapters.errors import ConfigError

ROOT = Path(__file__).parents[1]
#: tests/test_site.py runs these whole, trainings and all.
EXECUTED = {ROOT / "docs" / "start.md", *ROOT.glob("docs/tutorials/*.md")}
DOCS = [page for page in ROOT.glob("docs/**/*.md") if page not in EXECUTED]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "manifests" / "README.md", *DOCS]
FENCE = re.compile(
    r"(?:<!-- not run: (?P<reason>.+?) -->\n+)?^```(?P<kind>python|bash)\n(?P<code>.*?)^```$", re.M | re.S
)

#: Recipes that score what is there already, in a moment: they run whole.
QUICK = ("evaluate_emotion.py", "evaluate_verification.py")
#: Verbs that run a recipe that would take its time.
LONG = ("train", "fuse", "adapt")

#: What the runs that the documents name have trained, on the smallest packaged encoder.
TRAINED = {
    "mine": ("lora", CTCHead()),
    "asr_librispeech/latest": ("l", CTCHead()),
    "emotion_recognition/latest": ("l", ClassificationHead(labels=("happy", "sad"))),
    "speaker_verification/latest": ("l", SpeakerHead(speakers=("a", "b"))),
}


@dataclass(frozen=True)
class Block:
    page: str
    line: int
    kind: str
    code: str
    reason: str | None


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    for match in FENCE.finditer(text):
        line = text.count("\n", 0, match.start("code")) + 1
        yield Block(str(page.relative_to(ROOT)), line, match["kind"], match["code"], match["reason"])


def commands(code: str) -> Iterator[list[str]]:
    """The words of each command of a shell block, comments and line continuations taken away."""
    for line in code.replace("\\\n", " ").splitlines():
        for command in line.partition(" #")[0].split("&&"):
            if words := shlex.split(command, comments=True):
                yield words


class Checked(Exception):
    """A recipe has read its command line and found nothing wrong with it."""


def run_command(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a command in this process, as the shell would start it."""
    try:
        start(words, monkeypatch)
    except Checked:
        pass
    except SystemExit as stop:
        if stop.code:
            pytest.fail(f"{shlex.join(words)}: exit status {stop.code}")


def start(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Start a command; a recipe that trains stops at :class:`Checked`."""
    if words[0] == "speech-adapters":
        if words[1:3] in (["manifest", "make"], ["manifest", "import"]):  # the folder has it for the other blocks
            Path(words[words.index("-o") + 1]).unlink(missing_ok=True)
        with monkeypatch.context() as change:
            if words[1] in LONG:
                only_check(change)
            cli.main([name for word in words[1:] for name in (sorted(glob(word)) if "*" in word else [word])])
        return
    assert words[0] == "python", f"{shlex.join(words)}: mark the block with <!-- not run: the reason -->"
    with monkeypatch.context() as change:
        if words[1] == "-m":
            change.setattr(sys, "argv", words[2:])
            runpy.run_module(words[2], run_name="__main__", alter_sys=True)
            return
        script = ROOT / words[1]
        change.setattr(sys, "argv", [str(script), *words[2:]])
        change.syspath_prepend(str(script.parent))
        if script.name not in QUICK:
            only_check(change)
        runpy.run_path(str(script), run_name="__main__")


def only_check(change: pytest.MonkeyPatch) -> None:
    """Let a recipe stop at :class:`Checked`."""
    parse = config.parse_cli

    def check(*arguments: object, **options: object) -> None:
        parse(*arguments, **options)
        raise Checked

    change.setattr(config, "parse_cli", check)
    change.setattr(config, "run_main", lambda main: main())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the documents' commands find in the working folder."""
    root = tmp_path_factory.mktemp("work")
    for split, speakers in {"train": "abcd", "dev": "ef", "test": "gh"}.items():
        lines = []
        for number, speaker in enumerate(speakers):
            for take in range(2):
                name = f"{speaker}{take}"
                path, emotion = root / "audio" / f"{name}.wav", ("happy", "sad")[number % 2]
                speak(path, 1.0)
                labels = {"emotion": emotion, "label": emotion, "domain": "telephone"}
                lines.append(Utterance(name, path, 1.0, text="YES", speaker=speaker, **labels))
        Manifest(lines).write(root / f"{split}.jsonl")
    for name in ("calls", "unlabelled", "pool", "ten_minutes", "clean_test"):
        (root / f"{name}.jsonl").write_bytes((root / "train.jsonl").read_bytes())
    (root / "trigram.arpa").touch()
    (root / "trials.txt").write_text("1 g0 g1\n1 h0 h1\n0 g0 h0\n0 g1 h1\n")
    (root / "scores.txt").write_text("g0 g1 0.9\nh0 h1 0.8\ng0 h0 0.1\ng1 h1 0.2\n")
    (root / "theirs.csv").write_text("id,label,prediction\ng0,happy,happy\nh0,sad,happy\nh1,sad,sad\n")
    (root / "trials.csv").write_text("left file,right file,verdict\ng 0,g 1,target\ng 0,h 0,nontarget\n")
    (root / "scores.csv").write_text("left file,right file,llr\ng 0,g 1,2.5\ng 0,h 0,-1\n")
    (root / "guesses.csv").write_text("clip,gold,guess\na,happy,happy\nb,sad,happy\n")
    (root / "five_domains.yaml").write_bytes((ROOT / "recipes" / "call_center" / "demo.yaml").read_bytes())
    (root / "cv" / "clips").mkdir(parents=True)
    soundfile.write(root / "cv" / "clips" / "a.flac", [0.0] * 16_000, 16_000)
    (root / "cv" / "test.tsv").write_text("client_id\tpath\tsentence\ns1\ta.flac\tYes.\n")
    lines = ["file,text,speaker", *(f"{s}{take}.wav,YES,{s}" for s in "abcdef" for take in range(2))]
    (root / "calls.csv").write_text("\n".join(lines))
    for line in lines[1:]:
        speak(root / "calls" / line.partition(",")[0], 1.0)
    for name, channels in {"talk": 1, "monday": 1, "call": 2, "talks/one": 1, "talks/two": 1}.items():
        speak(root / f"{name}.wav", 3.0, channels=channels)
    for run, (method, head) in TRAINED.items():
        model = SpeechAdapterModel.from_pretrained("tiny-wavlm")
        model.add_adapter(method, method)
        model.add_head("asr", head)
        model.save_adapter(method, root / "runs" / run / "adapters" / method)
        model.save_head("asr", root / "runs" / run / "heads" / method)
    bank = Bank.create(root / "drawer")
    model = SpeechAdapterModel.from_pretrained("tiny-wavlm")
    for name in ("monday", "tuesday"):
        model.add_adapter(name, "lora")
        model.add_head(name, CTCHead())
        model.save_adapter(name, root / "trained" / "adapters" / name, wer={"value": 0.21, "low": 0.18, "high": 0.25})
        model.save_head(name, root / "trained" / "heads" / name)
        bank.add(root / "trained" / "adapters" / name, "client-a/asr", domain="telephone", language="en")
    for actor in range(1, 25):
        for emotion in range(1, 9):
            speak(root / "FOLDER" / f"Actor_{actor:02d}" / f"03-01-{emotion:02d}-01-01-01-{actor:02d}.wav", 0.1)
    return root


@pytest.fixture
def workplace(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "120")
    return folder


ALL = [block for page in PAGES if page.is_file() for block in blocks(page)]


@pytest.mark.parametrize("page", sorted({block.page for block in ALL if block.kind == "python"}))
def test_python_blocks_run(page: str, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("snippets")  # a module, so that the classes of a page pickle
    if page.startswith("docs/methods/"):
        module.__dict__["model"] = small_model()
    monkeypatch.setitem(sys.modules, "snippets", module)
    with patch.dict(ADAPTER_METHODS), patch.dict(small_models.METHODS):  # what a page adds to them goes with it
        for block in ALL:
            if (block.page, block.kind, block.reason) == (page, "python", None):
                padded = "\n" * (block.line - 1) + block.code  # so that a traceback names the page's own line
                exec(compile(padded, str(ROOT / page), "exec"), module.__dict__)


@pytest.mark.parametrize(
    "block", [b for b in ALL if b.kind == "bash" and not b.reason], ids=lambda block: f"{block.page}:{block.line}"
)
def test_commands_run(block: Block, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for words in commands(block.code):
        run_command(words, monkeypatch)


def test_what_does_not_run_names_what_runs_in_its_place() -> None:
    reasons = [block.reason for page in (*PAGES, *EXECUTED) for block in blocks(page) if block.reason]
    assert len(reasons) > 10
    for reason in reasons:
        named = re.search(r"\b(?:tests|docs)/[\w/]+\.(?:py|md)\b", reason)
        assert named and (ROOT / named[0]).is_file(), reason


def test_blocks_are_found_with_their_reasons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    page = tmp_path / "page.md"
    page.write_text(
        "# Page\n\n```python\nx = 1\n```\n\n<!-- not run: needs the hub -->\n```bash\nhf download x\n```\n\n"
        "```bash\npython a.py --b 'c d' \\\n    e=f  # why\npython -m g && python h.py\n```\n"
    )
    first, second, third = blocks(page)
    assert (first.kind, first.line, first.reason) == ("python", 4, None)
    assert (second.kind, second.reason) == ("bash", "needs the hub")
    words = [["python", "a.py", "--b", "c d", "e=f"], ["python", "-m", "g"], ["python", "h.py"]]
    assert list(commands(third.code)) == words


@pytest.mark.parametrize(
    "words",
    [
        ["python", "recipes/asr_librispeech.py", "--adaptor", "el"],
        ["python", "recipes/asr_librispeech.py", "training.update=3"],
        ["speech-adapters", "check", "none.jsonl"],
        ["make", "demo"],
    ],
)
def test_a_command_that_is_wrong_fails(words: list[str], workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises((AssertionError, pytest.fail.Exception, ConfigError)):
        run_command(words, monkeypatch)
