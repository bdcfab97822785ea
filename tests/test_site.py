"""The site builds without a warning and fetches nothing; the tutorials run, and print what they say they print."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from scripts import load_script

from speech_adapters.corpora import demo
from speech_adapters.corpora.demo_plan import plan_demo

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


execute = load_script("docs/execute.py")

# The tutorials


@pytest.fixture(scope="module")
def voices(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The part of the demo corpus that the tutorials take: its first speakers' studio recordings."""
    with pytest.MonkeyPatch.context() as change:
        if not (demo.demo_root() / "complete.json").is_file():
            used, plan = {"train": 10, "dev": 2, "test": 4}, plan_demo()
            first = {
                split: sorted({planned.speaker for planned in plan if planned.split == split})[:count]
                for split, count in used.items()
            }
            part = [p for p in plan if p.domain == "studio" and p.speaker in first[p.split]]
            change.setattr(demo, "plan_demo", lambda: part)
            change.setenv("SPEECH_ADAPTERS_CACHE", str(tmp_path_factory.mktemp("voices")))
        yield


@pytest.mark.slow
@pytest.mark.parametrize("page", execute.PAGES, ids=lambda page: page.stem)
def test_tutorials_print_what_they_say(
    page: Path, voices: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    with execute.Reader(short=True) as reader:
        for match, printed, key in execute.outputs(page, reader):
            said, code = match["said"], match["code"]
            if match["word"] == "output":
                assert printed == said, f"{page.name}: {code}"
            else:
                assert match["key"] == key, (
                    f"{page.name}: changed since it printed its outputs: make tutorials\n{code}"
                )
            if match["word"] == "figures":
                assert execute.without_numbers(printed) == execute.without_numbers(said), f"{page.name}: {code}"


def test_every_tutorial_has_been_run() -> None:
    for page in execute.PAGES:
        asked = [match for match in execute.BLOCK.finditer(page.read_text(encoding="utf-8")) if match["word"]]
        assert asked, page.name
        for match in asked:
            assert match["said"].strip() and bool(match["key"]) == (match["word"] != "output"), (
                page.name,
                match["code"],
            )


def test_a_tutorial_whose_output_is_stale_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```python\nprint(1 + 1, 'is it')\n```\n\n<!-- output -->\n```text\n3 is it\n```\n")
    with execute.Reader() as reader:
        [(match, printed, _)] = execute.outputs(page, reader)
    assert (match["said"], printed) == ("3 is it\n", "2 is it\n")
    page.write_text(execute.execute(page))
    assert (
        "```\n\n<!-- output -->\n```text\n2 is it\n```\n" in page.read_text()
        and execute.execute(page) == page.read_text()
    )
    assert execute.without_numbers("WER  31.2 %  12 s") == execute.without_numbers("WER 8.0 %  1,200.5 s")


def test_commands_and_updates_of_a_tutorial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with execute.Reader(short=True) as reader:
        assert reader.run("python", "updates=300\nprint(updates)", "here") == "2\n"
        assert (
            reader.run("bash", "echo --updates 300 training.updates=40", "here") == "--updates 2 training.updates=2\n"
        )
        with pytest.raises(RuntimeError, match="exit status 3"):
            reader.run("bash", "exit 3", "here")
        with pytest.raises(RuntimeError, match="exit status 2"):
            reader.run("bash", "speech-adapters check none.jsonl\n", "here")


# Troubleshooting


def messages() -> list[re.Pattern[str]]:
    """What the package can say: its strings, with anything where a value stands."""
    found = []
    for path in (ROOT / "speech_adapters").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            parts: list[ast.expr] = (
                node.values if isinstance(node, ast.JoinedStr) else [node] if isinstance(node, ast.expr) else []
            )
            words = [
                part.value if isinstance(part, ast.Constant) and isinstance(part.value, str) else None
                for part in parts
            ]
            if sum(len(word) for word in words if word) >= 25:
                found.append(re.compile("".join(".*?" if word is None else re.escape(word) for word in words), re.S))
    return found


def test_the_messages_of_troubleshooting_are_those_of_the_code() -> None:
    known = messages()
    quoted = re.findall(
        r"^```text\n(.+?)\n```$", (DOCS / "troubleshooting.md").read_text(encoding="utf-8"), re.M | re.S
    )
    assert len(quoted) > 15
    unknown = [text for text in quoted if not any(pattern.fullmatch(text) for pattern in known)]
    assert not unknown
    assert not any(pattern.fullmatch("call.wav: 2 channels; choose one with") for pattern in known)


# The site


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_fetches_nothing(tmp_path: Path) -> None:
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0 and "WARNING" not in built.stderr, built.stderr
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) > 60
    loads = re.compile(r"<(?:script|img|iframe)[^>]+src=\"?(?:https?:)?//|<link[^>]+(?:stylesheet|preconnect)[^>]+//")
    taken_in = re.compile(r"\n\s*[-*|] ")  # a list or table that Markdown took for more of the paragraph before it
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert not loads.search(text), page
        assert not [part for part in re.findall(r"<p>(.*?)</p>", text, re.S) if taken_in.search(part)], page
    assert "ClassificationHead" in (tmp_path / "site" / "api" / "heads.html").read_text(encoding="utf-8")
