"""The committed pages are what the code says, and say it completely."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from speech_adapters.adapters import ADAPTER_METHODS, PRESETS

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture(scope="module")
def pages():
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    return generate.pages()


def test_committed_pages_are_current(pages):
    for name, text in pages.items():
        assert (DOCS / name).read_text(encoding="utf-8") == text, f"docs/{name} is not what the code says: make docs"
    assert {path.name for path in (DOCS / "methods").iterdir()} == {Path(name).name for name in pages} - {"methods.md"}


def test_every_method_and_preset_has_its_place(pages):
    assert len(pages) == 1 + len(ADAPTER_METHODS)
    assert all(f"| `{name}` |" in pages["methods.md"] for name in PRESETS)
    for name, text in pages.items():
        assert not re.search(r":\w+:`|(?<!`)``(?!`)", text), name
        for link in re.findall(r"\]\(([\w./-]+\.md)\)", text):
            assert ((DOCS / name).parent / link).resolve().is_file(), (name, link)
        if name != "methods.md":
            assert "## Settings" in text and re.search(r"\b[Uu]se\s(it|them|the)\b|baseline", text), name
