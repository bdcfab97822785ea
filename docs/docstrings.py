"""Docstrings as Markdown, for the site: roles and double backticks become backticks, `::` begins a block of code, and
so does `>>>`."""

from __future__ import annotations

import re
from typing import Any

import griffe


class Docstrings(griffe.Extension):
    """Rewrites every docstring before it is rendered."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called for each module, class and function."""
        if obj.docstring:
            obj.docstring.value = markdown(obj.docstring.value)


def markdown(text: str) -> str:
    """A docstring's roles and double backticks as Markdown's backticks, ``::`` as the colon it stands for, and lines
    from ``>>>`` on as a block of code: to Markdown they are three quotations, one in the other."""
    text = re.sub(r":\w+:`~?(?:[\w.]*\.)?(\w+)`", r"`\1`", text)
    text = re.sub(r"``(.+?)``", r"`\1`", text, flags=re.S)
    text = re.sub(r" +# doctest: \+SKIP", "", text)
    text = re.sub(r"^( *)>>>.*(?:\n\1\S.*)*", r"\1```pycon\n\g<0>\n\1```", text, flags=re.M)
    return re.sub(r"::$", ":", text, flags=re.M)
