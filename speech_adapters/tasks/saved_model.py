"""A model out of what was saved, as command lines name it: an adapter, a head, an encoder, or some of them."""

from __future__ import annotations

from pathlib import Path

import torch

from speech_adapters.errors import ConfigError
from speech_adapters.model import SpeechAdapterModel


def load_saved(
    adapter: str | Path | None, head: str | Path | None, encoder: str | None, device: str = "auto"
) -> SpeechAdapterModel:
    """The model in eval mode; what is not named is found from what is (:meth:`SpeechAdapterModel.from_adapter`).

    Args:
        device: "auto" is a GPU where there is one.

    Raises:
        ConfigError: none of the three, or an encoder that cannot be loaded.
        CheckpointError: parts that are damaged, do not fit, or of which several fit.
    """
    place = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    if adapter is None and head is None and encoder is None:
        raise ConfigError("name a model: --adapter FOLDER, or --encoder NAME.")
    if adapter is None and encoder is not None:
        model = SpeechAdapterModel.from_pretrained(encoder, device=place)
        if head is not None:
            model.load_head(head)
        return model.eval()
    folder = adapter if adapter is not None else head
    assert folder is not None
    return SpeechAdapterModel.from_adapter(folder, head=head, encoder=encoder, device=place)


_VERBS = {"ctc": "asr", "classification": "classification", "slots": "slots", "speaker": "verification"}
"""Type of head -> what ``speech-adapters evaluate`` calls its task."""


def check_head(model: SpeechAdapterModel, head_type: str) -> None:
    """Raise a ConfigError where the head is of another task than the one scored; it names the command for it."""
    own = None if model.head is None else model.head.config.head_type
    if model.head is None or own == head_type or own not in _VERBS:  # types from elsewhere may answer to any task
        return
    field = getattr(model.head.config, "label_field", None)
    kind = own if field is None else f"{own} of {field}"
    option = "" if field in (None, "emotion") else f" --label-field {field}"
    raise ConfigError(
        f"head {model.active_head!r} is for {kind}, and this command scores {head_type}; use speech-adapters evaluate "
        f"{_VERBS[own]}{option}."
    )
