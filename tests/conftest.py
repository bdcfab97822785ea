"""What all tests share: no network, one thread a worker, and a reason for each test that cannot run here."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

# Set before any test imports torch or transformers, and inherited by the processes that tests start.
os.environ["HF_HUB_OFFLINE"] = os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("MPLBACKEND", "Agg")
_PARALLEL = "PYTEST_XDIST_WORKER" in os.environ
if _PARALLEL:  # workers share the cores: more threads than cores only wait for one another
    os.environ["OMP_NUM_THREADS"] = "1"


def pytest_configure(config: pytest.Config) -> None:
    if _PARALLEL:
        import torch

        torch.set_num_threads(1)


def pytest_runtest_setup() -> None:
    """Forget speechbrain's placeholders of optional packages: they raise when hypothesis looks through all modules."""
    if "speechbrain" in sys.modules:
        from speechbrain.utils.importutils import LazyModule

        for name, module in list(sys.modules.items()):
            if isinstance(module, LazyModule):
                del sys.modules[name]


def pytest_collection_modifyitems(items: Iterable[pytest.Item]) -> None:
    on_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if not on_gpu:
        return
    import torch

    if not torch.cuda.is_available():
        for item in on_gpu:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with ``manifests/*.jsonl`` of real speech."""
    folder = os.environ.get("SPEECH_ADAPTERS_DATA")
    if not folder:
        pytest.skip("needs real speech: set SPEECH_ADAPTERS_DATA to a folder with manifests/*.jsonl")
    path = Path(folder).resolve()
    if not (path / "manifests").is_dir():
        pytest.fail(f"SPEECH_ADAPTERS_DATA={folder}: no manifests/ in that folder")
    return path
