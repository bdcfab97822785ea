"""A run folder: everything one run of a recipe leaves behind, and where it lies.

    runs/asr_librispeech/2025-01-31_12-00-00/
        config.yaml        the resolved configuration; ``--config`` with it repeats the run
        metrics.jsonl      one line a logged step
        results.json       figures with intervals, parameters, seconds, versions
        adapters/<name>/   heads/<name>/   trn/<name>/   predictions/<name>.jsonl   scores/<name>.txt
        tensorboard/   report.html
    runs/asr_librispeech/latest -> the newest

In a multi-process run the main process creates the folder and is the only one that writes to it.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from speech_adapters.config import load_config, save_config, to_dict
from speech_adapters.errors import ConfigError, InputError
from speech_adapters.files import read_json, read_log, to_json, write_json


class RunFolder:
    """An existing run folder; :meth:`create` makes a new one."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if not self.path.is_dir():
            raise InputError(
                f"{self.path}: no such run folder; give one that a recipe wrote, such as runs/<recipe>/latest"
            )

    @classmethod
    def create(
        cls, recipe: str, root: str | os.PathLike[str] = "runs", path: str | os.PathLike[str] | None = None
    ) -> RunFolder:
        """Make ``<root>/<recipe>/<time>`` and point ``latest`` at it; or make exactly ``path``, which must be new.

        Under ``torchrun`` the main process makes it and all get the same one. Raises :class:`InputError` where the
        folder cannot be made.
        """
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return cls._create(recipe, root, path)
        import torch
        from accelerate import PartialState
        from accelerate.utils import broadcast_object_list

        processes = PartialState(cpu=not torch.cuda.is_available())
        made = [str(cls._create(recipe, root, path).path) if processes.is_main_process else None]
        return cls(broadcast_object_list(made)[0])

    @classmethod
    def resume_or_create(
        cls, recipe: str, config: Any, path: str | os.PathLike[str] | None = None, ignore: Sequence[str] = ("output",)
    ) -> RunFolder:
        """The run folder ``path`` where a run of the same ``config`` was begun; else a new one that holds ``config``.

        Raises :class:`ConfigError` that names the first setting that differs from those the run was begun with.
        """
        if path is None or not (Path(path) / "config.yaml").is_file():
            run = cls.create(recipe, path=path)
            run.save_config(config)
            return run
        run = cls(path)
        before, now = to_dict(load_config(type(config), run.config_file)), to_dict(config)
        for key in now:
            if key not in ignore and now[key] != before[key]:
                raise ConfigError(
                    f"{key}: {path} was begun with {before[key]}, not {now[key]}; go on with that value, or name "
                    "a new folder as --output."
                )
        return run

    @classmethod
    def _create(cls, recipe: str, root: str | os.PathLike[str], path: str | os.PathLike[str] | None) -> RunFolder:
        try:
            if path is not None:
                Path(path).mkdir(parents=True)
                return cls(path)
            parent = Path(root) / _file_name(recipe)
            parent.mkdir(parents=True, exist_ok=True)
            stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
            for attempt in itertools.count(1):  # two runs may start within the same second
                folder = parent / (stamp if attempt == 1 else f"{stamp}_{attempt}")
                with contextlib.suppress(FileExistsError):
                    folder.mkdir()
                    break
        except FileExistsError as error:
            raise InputError(f"{error.filename}: exists already; name a new folder, or remove it") from error
        except OSError as error:
            raise InputError(f"{error.filename}: the run folder cannot be made ({error.strerror})") from error
        _point(parent / "latest", folder.name)
        return cls(folder)

    def __fspath__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        return f"RunFolder({str(self.path)!r})"

    @property
    def config_file(self) -> Path:
        return self.path / "config.yaml"

    @property
    def metrics_file(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def results_file(self) -> Path:
        return self.path / "results.json"

    @property
    def worst_file(self) -> Path:
        """Worst utterances, which the report shows; see :mod:`speech_adapters.reports.report` for their keys."""
        return self.path / "worst.json"

    @property
    def layer_weights_file(self) -> Path:
        return self.path / "layer_weights.json"

    @property
    def detection_file(self) -> Path:
        """What the report draws DET curves and score histograms from, by system."""
        return self.path / "detection.json"

    @property
    def report_file(self) -> Path:
        return self.path / "report.html"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    def adapter(self, name: str) -> Path:
        return self.path / "adapters" / _file_name(name)

    def head(self, name: str) -> Path:
        return self.path / "heads" / _file_name(name)

    def trn(self, name: str) -> Path:
        """The folder of ``ref.trn`` and ``hyp.trn`` of one method or test set."""
        return self.path / "trn" / _file_name(name)

    def predictions(self, name: str) -> Path:
        """The predicted classes of one method or test set, in JSON Lines."""
        return self.path / "predictions" / f"{_file_name(name)}.jsonl"

    def scores(self, name: str) -> Path:
        """The scores of one trial list, ``enrol test score`` a line."""
        return self.path / "scores" / f"{_file_name(name)}.txt"

    def save_config(self, config: Any) -> None:
        save_config(config, self.config_file)

    def log_metrics(self, metrics: Mapping[str, Any]) -> None:
        """Append one line to ``metrics.jsonl``, such as ``{"step": 10, "loss": 2.1, "method": "elp"}``."""
        with self.metrics_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(to_json(metrics), ensure_ascii=False) + "\n")

    def read_metrics(self) -> list[dict[str, Any]]:
        """The logged lines in order; none where nothing was logged."""
        return read_log(self.metrics_file)

    def write_results(self, results: Mapping[str, Any]) -> None:
        """Write ``results.json`` whole or not at all; figures that are not finite are written as null."""
        write_json(self.results_file, results)

    def read_results(self) -> dict[str, Any]:
        """The content of ``results.json``. Raises :class:`InputError` where the run did not finish."""
        return read_json(self.results_file)


def environment(device: Any = None) -> dict[str, Any]:
    """``versions``, ``git_commit`` (``...-dirty`` with local changes; None if unknown) and ``device``, for results."""
    import torch

    packages = ("speech-adapters", "torch", "torchaudio", "transformers", "peft", "numpy")
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    cpu = f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
    return {
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in packages}},
        "git_commit": _git_commit(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu,
    }


def peak_memory_bytes(device: Any = "cpu") -> int:
    """Peak memory in bytes: allocated by torch on a GPU, resident on a CPU; since :func:`reset_peak_memory`."""
    import torch

    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:  # Linux: getrusage would count the memory of the process that started this one as well
        status = Path("/proc/self/status").read_text()
        return 1024 * int(re.search(r"VmHWM:\s*(\d+) kB", status)[1])  # type: ignore[index]
    except (OSError, TypeError):
        pass
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # macOS counts bytes, others KiB


def reset_peak_memory(device: Any = "cpu") -> None:
    """Begin a new measurement, so that each method of a run gets its own peak (on a CPU: on Linux only)."""
    import torch

    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with contextlib.suppress(OSError):  # "5" resets the high-water mark of resident memory; see proc(5)
            Path("/proc/self/clear_refs").write_text("5")


def _point(link: Path, target: str) -> None:
    """Make or move a symbolic link in one step, so that it never dangles."""
    temporary = link.with_name(f".latest.{os.getpid()}.tmp")
    try:
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(target)
        os.replace(temporary, link)
    except OSError:  # some file systems know no links: `latest` is a convenience, the run goes on without
        temporary.unlink(missing_ok=True)


def _file_name(name: str) -> str:
    if not re.fullmatch(r"[\w][\w.+-]*", name):
        raise ConfigError(f"name '{name}': use letters, digits and _ . + - only, since it names a file or folder")
    return name


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:  # run from a checkout that was not installed
        return None


def _git_commit() -> str | None:
    """The commit this code is of; None where it does not lie in a repository that tracks it."""
    here = Path(__file__)
    try:
        for command in (
            ("ls-files", "--error-unmatch", here.name),
            ("describe", "--always", "--dirty", "--exclude=*", "--abbrev=40"),
        ):
            done = subprocess.run(
                ["git", *command], cwd=here.parent, capture_output=True, text=True, check=True, timeout=20
            )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
