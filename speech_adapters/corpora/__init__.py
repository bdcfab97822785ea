"""Corpora: one file each, with a ``download_x`` where it can be downloaded and a ``prepare_x`` that writes manifests.

>>> from speech_adapters.corpora import prepare_demo, prepare_librispeech
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

CORPORA: dict[str, tuple[str, ...]] = {
    "demo": ("prepare_demo", "demo_root", "DemoCorpus"),
    "librispeech": ("download_librispeech", "prepare_librispeech"),
    "iemocap": ("prepare_iemocap",),
    "crema_d": ("prepare_crema_d",),
    "ravdess": ("download_ravdess", "prepare_ravdess"),
    "emodb": ("download_emodb", "prepare_emodb"),
    "voxceleb": ("prepare_voxceleb",),
    "fluent_speech_commands": ("prepare_fluent_speech_commands",),
    "harper_valley": ("download_harper_valley", "prepare_harper_valley"),
}
"""Name of a corpus, which is its module here -> its public functions."""

__all__ = ["CORPORA", *(name for names in CORPORA.values() for name in names)]


def __getattr__(name: str) -> Any:
    for module, names in CORPORA.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
