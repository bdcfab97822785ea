"""Pages from the templates beside this file: complete in themselves, everything in them escaped.

A page carries its style and its script. Its policy lets it fetch nothing and run no script but that one, which the
policy names by its hash.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

_TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Cell:
    """One cell of a table; ``small`` stands below ``text``, ``share`` (0 to 1) shades the cell."""

    text: str
    small: str = ""
    bold: bool = False
    share: float | None = None
    tip: str = ""


@dataclass(frozen=True)
class Table:
    """``rows`` start with their name; ``numeric`` tells for each column whether it holds figures."""

    titles: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    numeric: Sequence[bool]
    corner: str = ""
    """What the columns of a matrix are, above their titles."""


def render(template: str, script: str = "", **values: Any) -> str:
    """The page of a template with ``values``; ``script`` names a file that lies beside the templates."""
    code = (_TEMPLATES / script).read_text(encoding="utf-8") if script else ""
    policy = "default-src 'none'; style-src 'unsafe-inline'; media-src data:; img-src data:"
    if code:
        policy += f"; script-src 'sha256-{base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()}'"
    css = (_TEMPLATES / "page.css").read_text(encoding="utf-8")
    return _environment().get_template(template).render(policy=policy, css=Markup(css), code=Markup(code), **values)


def render_text(template: str, **values: Any) -> str:
    """The text of a template with ``values`` as they are: for formats other than HTML."""
    return _environment(autoescape=False).get_template(template).render(**values)


@cache
def _environment(autoescape: bool = True) -> Environment:
    return Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=autoescape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
