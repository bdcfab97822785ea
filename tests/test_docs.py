"""The committed pages are what the code says, and say it completely."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from functools import cached_property
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages
from types import FunctionType, ModuleType

import pytest
from scripts import load_script

import speech_adapters
from speech_adapters.adapters import ADAPTER_METHODS, PRESETS

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture(scope="module")
def pages():
    return load_script("docs/generate.py").pages()


def test_committed_pages_are_current(pages):
    for name, text in pages.items():
        assert (DOCS / name).read_text(encoding="utf-8") == text, f"docs/{name} is not what the code says: make docs"
    methods = {name.removeprefix("methods/") for name in pages if name.startswith("methods/")}
    assert {path.name for path in (DOCS / "methods").iterdir()} == methods


def test_every_method_and_preset_has_its_place(pages):
    assert len(pages) == 3 + len(ADAPTER_METHODS)
    assert all(f"| `{name}` |" in pages["methods.md"] for name in PRESETS)
    for name, text in pages.items():
        assert not re.search(r":\w+:`|(?<!`)``(?!`)", text), name
        for link in re.findall(r"\]\(([\w./-]+\.md)\)", text):
            assert ((DOCS / name).parent / link).resolve().is_file(), (name, link)
        if name.startswith("methods/"):
            assert "## Settings" in text and re.search(r"\b[Uu]se\s(it|them|the)\b|baseline", text), name


def test_examples_are_blocks_of_code_on_the_site() -> None:
    pytest.importorskip("griffe", reason="needs mkdocstrings (extra docs)")
    markdown = load_script("docs/docstrings.py").markdown
    text = "Does ``it``:\n\n>>> with a as b:  # doctest: +SKIP\n...     b\n>>> c\n2\n\nMore::\n\n    x\n"
    assert markdown(text) == ("Does `it`:\n\n```pycon\n>>> with a as b:\n...     b\n>>> c\n2\n```\n\nMore:\n\n    x\n")


def undocumented(module: ModuleType) -> Iterator[str]:
    """Public methods and properties of a module's public classes with no docstring, of their own or inherited."""
    for name, cls in vars(module).items():
        if inspect.isclass(cls) and cls.__module__ == module.__name__ and not name.startswith("_"):
            for key, member in vars(cls).items():
                described = isinstance(member, FunctionType | property | cached_property | classmethod | staticmethod)
                if described and not key.startswith("_") and not inspect.getdoc(getattr(cls, key)):
                    yield f"{module.__name__}.{name}.{key}"


def test_every_public_method_says_what_it_does() -> None:
    modules = [import_module(found.name) for found in walk_packages(speech_adapters.__path__, "speech_adapters.")]
    assert len(modules) > 100
    assert not [name for module in modules for name in undocumented(module)]


def test_a_method_without_a_docstring_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("made_up")
    monkeypatch.setitem(sys.modules, "made_up", module)  # inherited docstrings are looked up there
    code = """
class Base:
    def a(self):
        '''Documented.'''

class Heir(Base):
    def a(self): ...
    def b(self): ...
    def _c(self): ...
"""
    exec(code, module.__dict__)
    assert list(undocumented(module)) == ["made_up.Heir.b"]
