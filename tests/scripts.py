"""Scripts (recipes, benchmarks, examples, docs) as modules, whose parts the tests call."""

from __future__ import annotations

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]


def load_script(path: str) -> ModuleType:
    """The script at ``path`` below the repository's root; it finds its neighbours as it does when it is run."""
    script = ROOT / path
    spec = spec_from_file_location(script.stem, script)
    assert spec is not None and spec.loader is not None
    module = sys.modules[script.stem] = module_from_spec(spec)  # dataclasses look their module up there
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(script.parent)
        spec.loader.exec_module(module)
    return module
