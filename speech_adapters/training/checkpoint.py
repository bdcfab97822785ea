"""A training's checkpoint: what was learnt, how far it is, and the settings that shaped it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from speech_adapters.errors import CheckpointError, ConfigError, counted, first_line, out_of_memory
from speech_adapters.files import atomic
from speech_adapters.training.part import Part
from speech_adapters.training.result import TrainingResult
from speech_adapters.training.settings import settings_of_updates


@dataclass
class Progress:
    """How far a training is, all parts together: updates done (turns counted apart), epoch and batches of it that were
    read, wall seconds, joules (None where no counter can be read), peak memory in bytes, and operations and seconds of
    audio of the first update, which stands for all."""

    done: int = 0
    epoch: int = 0
    place: int = 0
    seconds: float = 0.0
    joules: float | None = 0.0
    peak_memory: int = 0
    first_flops: int = 0
    first_audio: float = 0.0
    sums: dict[str, list[float]] = field(default_factory=dict)
    """Of each figure since the last line of the log: its sum and count."""


def save_checkpoint(
    path: Path,
    parts: Mapping[str, Part],
    progress: Progress,
    processes: int,
    results: Mapping[str, TrainingResult] | None = None,
) -> None:
    """Write a checkpoint, whole or not at all; of a finished training, which has ``results``, without what only
    resuming needs."""
    content: dict[str, Any] = {
        "settings": _settings(parts),
        "parts": {key: part.state(results is not None) for key, part in parts.items()},
    }
    if results is not None:
        content["results"] = {key: asdict(result) for key, result in results.items()}
    else:
        content |= {"progress": asdict(progress), "processes": processes}
    with atomic(path) as file:
        torch.save(content, file)


def load_checkpoint(
    path: Path, parts: Mapping[str, Part], device: torch.device, processes: int
) -> Progress | dict[str, TrainingResult]:
    """Restore ``parts`` from a checkpoint, its tensors on ``device``; ``processes`` are those that go on.

    Returns: how far the training is, or the results of a finished one.

    Raises:
        ConfigError: the checkpoint is of other parts, settings or processes.
        CheckpointError: a damaged file.
    """
    try:
        content = torch.load(path, map_location=device, weights_only=True)
        _check_settings(path, parts, content["settings"])
        for key, part in parts.items():
            part.load(content["parts"][key])
        if "results" in content:
            return {key: TrainingResult(**result) for key, result in content["results"].items()}
        if (before := content.get("processes", processes)) != processes:
            raise ConfigError(
                f"{path} was begun by {counted(before, 'process', 'processes')}, not {processes}; go on with as many, "
                "or start a new run folder."
            )
        return Progress(**content["progress"])
    except ConfigError:
        raise
    except Exception as error:  # whatever a damaged file makes torch.load or the parts raise
        if out_of_memory(error):
            raise
        raise CheckpointError(f"{path}: cannot be resumed ({first_line(error)}); remove it to start over.") from error


def _settings(parts: Mapping[str, Part]) -> dict[str, dict[str, str]]:
    """The settings that shape the updates, by part."""
    return {key: settings_of_updates(part.config) for key, part in parts.items()}


def _check_settings(path: Path, parts: Mapping[str, Part], stored: Mapping[str, Mapping[str, str]]) -> None:
    """Raise a ConfigError for a checkpoint of other parts or settings."""
    now = _settings(parts)
    if stored.keys() != now.keys():
        raise ConfigError(f"{path} was begun with {', '.join(stored)}, not {', '.join(now)}; start a new run folder.")
    for part, settings in now.items():
        # a setting that is younger than the checkpoint had its default's effect
        before = settings_of_updates(type(parts[part].config)()) | dict(stored[part])
        if changed := [key for key in settings if before[key] != settings[key]]:
            raise ConfigError(
                f"{path} was begun with training.{changed[0]}={before[changed[0]]}, not {settings[changed[0]]}; "
                "go on with the former, or start a new run folder."
            )
