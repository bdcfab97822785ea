"""The floors of the package: a file imports from floors below it and from its own folder, and no files form a circle.

Imports inside functions and under ``TYPE_CHECKING`` count like all others.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = "speech_adapters"

#: Rooms by floor, lowest first; rooms of one line share a floor.
FLOORS = (
    (
        "errors",
        "deprecation",
        "files",
        "locks",
        "precision",
        "ranges",
        "schema",
        "speechbrain_parts",
        "flags",
        "strict_yaml",
        "config",
        "text",
    ),
    ("metrics",),
    ("data",),
    ("encoders",),
    ("adapters",),
    ("heads",),
    ("composition",),
    ("saving",),
    ("model_output",),
    ("inference",),
    ("unlabelled",),
    ("model",),
    ("corpora",),
    ("runs",),
    ("reports",),
    ("training",),
    ("objectives",),
    ("tasks",),
    ("active",),
    ("sweeps",),
    ("bank",),
    ("serving",),
    ("cli",),
    ("__main__",),
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def modules(root: Path) -> dict[str, Path]:
    """Every module of the package at ``root`` by its dotted name; a folder is its ``__init__.py``."""
    found = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(module: str, path: Path, known: dict[str, Path]) -> Iterator[tuple[int, str]]:
    """(line, module) of each import from the package in a file, wherever in the file it stands."""
    folder = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = ".".join(folder.split(".")[: len(folder.split(".")) - node.level + 1]) if node.level else ""
            source = ".".join(filter(None, (above, node.module)))
            names = (f"{source}.{alias.name}" for alias in node.names)
            targets = list(dict.fromkeys(name if name in known else source for name in names))
        else:
            continue
        root = module.partition(".")[0]
        yield from ((node.lineno, target) for target in targets if target.partition(".")[0] == root)


def faults(root: Path) -> list[str]:
    """What is against the floors in the package at ``root``, one message each."""
    known, found = modules(root), []
    graph: dict[str, set[str]] = {}
    for module, path in known.items():
        graph[module] = set()
        room = module.split(".")[1] if "." in module else None
        if room is not None and room not in FLOOR:
            found.append(f"{module}: no floor is named {room!r}; give it one in FLOORS")
            continue
        for line, target in imports(module, path, known):
            if target not in known:
                found.append(f"{module}:{line}: {target} is no module of the package")
                continue
            if target != module:
                graph[module].add(target)
            other = target.split(".")[1] if "." in target else None
            if room is None or other is None or other == room or other not in FLOOR:
                continue
            if FLOOR[other] > FLOOR[room]:
                found.append(f"{module}:{line}: {target} stands on a higher floor")
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        found.append("circle: " + " -> ".join(reversed(error.args[1])))
    return found


def test_every_import_goes_down() -> None:
    root = Path(__file__).parents[1] / PACKAGE
    assert len(modules(root)) > 100
    assert not faults(root), "\n".join(faults(root))


FINE = {
    "__init__": "",
    "errors": "",
    "metrics/__init__": "from house.metrics.wer import wer",
    "metrics/wer": "from house import errors\nimport torch",
    "model": "from house.metrics import wer",
}


@pytest.mark.parametrize(
    ("changed", "fault"),
    [
        ({}, None),
        ({"metrics/wer": "import house.model"}, "house.metrics.wer:1: house.model stands on a higher floor"),
        (
            {"errors": "def f():\n    from house.model import M"},
            "house.errors:2: house.model stands on a higher floor",
        ),
        (
            {"errors": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .metrics import wer"},
            "house.errors:3: house.metrics.wer stands on a higher floor",
        ),
        ({"metrics/cer": "from house.metrics.wer import a", "metrics/wer": "from . import cer"}, "circle: "),
        ({"errors": "import house.config", "config": "from house.errors import E"}, "circle: "),
        ({"attic/__init__": ""}, "house.attic: no floor is named 'attic'; give it one in FLOORS"),
        ({"model": "from house.gone import x"}, "house.model:1: house.gone is no module of the package"),
    ],
)
def test_faults_are_found(tmp_path: Path, changed: dict[str, str], fault: str | None) -> None:
    for name, text in (FINE | changed).items():
        path = tmp_path / "house" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    found = faults(tmp_path / "house")
    assert not found if fault is None else any(message.startswith(fault) for message in found), found
