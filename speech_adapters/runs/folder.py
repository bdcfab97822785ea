"""A run folder: everything one run of a recipe leaves behind, and where it lies.

    runs/asr_librispeech/2025-01-31_12-00-00/
        config.yaml        the resolved configuration; ``--config`` with it repeats the run
        data.json          what the manifests held: name, utterances, hours, speakers, hash; what tells the encoder
        metrics.jsonl      one line per logged step
        results.json       figures with intervals, parameters, seconds, versions
        checkpoints/       what a training goes on from when it was stopped
        adapters/<name>/   heads/<name>/   trn/<name>/   predictions/<name>.jsonl   scores/<name>.txt   trials.tsv
        tensorboard/   report.html
    runs/asr_librispeech/latest -> the newest run that began to train

The same configuration with the same folder goes on where it stopped; another configuration is refused, and so is a
manifest that has changed since. One process (of a multi-process run the main one) writes to a folder at a time.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from speech_adapters.config import RUN_CONFIG, find_run, is_run, load_config, save_config, to_dict
from speech_adapters.errors import ConfigError, InputError
from speech_adapters.files import read_json, read_log, to_json, write_json, write_text
from speech_adapters.locks import hold, release

NEVER_COMPARED = ("output", "resume")
"""Settings that say where a run lies, not what it is."""


class RunFolder:
    """An existing run folder, to read or to go on with; :meth:`open` and :meth:`create` make new ones.

    Those that they lock stay so until this process ends, or until the end of a ``with`` block.

    Attributes:
        path: the folder.
        resumed: whether it existed before; trainings then go on from their checkpoints. In a new folder a second
            training of the same name is refused.
    """

    def __init__(self, path: str | os.PathLike[str], *, resumed: bool = True) -> None:
        self.path, self.resumed = Path(path), resumed
        self._latest: Path | None = None
        if not self.path.is_dir():
            raise InputError(
                f"{self.path}: no such run folder; give one that a recipe wrote, such as runs/<recipe>/latest"
            )

    @classmethod
    def create(
        cls, recipe: str, root: str | os.PathLike[str] = "runs", path: str | os.PathLike[str] | None = None
    ) -> RunFolder:
        """Make ``<root>/<recipe>/<time>``, or exactly ``path``, which must be new, and lock it.

        Under ``torchrun`` the main process makes it and all get the same one. Raises :class:`InputError` where the
        folder cannot be made.
        """
        return _once_for_all_processes(lambda: cls._create(recipe, root, path))

    @classmethod
    def open(
        cls,
        recipe: str,
        config: Any,
        path: str | os.PathLike[str] | None = None,
        *,
        resume: str | None = None,
        root: str | os.PathLike[str] = "runs",
        ignore: Sequence[str] = (),
        data: Mapping[str, Any] | None = None,
        base: Mapping[str, Any] | None = None,
    ) -> RunFolder:
        """The folder of a run with this ``config``: the one that was begun, else a new one that holds it.

        Args:
            path: where it lies or shall lie; ``<root>/<recipe>/<time>`` by default.
            resume: "latest" for ``<root>/<recipe>/latest``, or a path: a run that must have been begun.
            ignore: settings that may differ from those it was begun with.
            data: its manifests, by split, as :meth:`~speech_adapters.data.manifest.Manifest.describe` has them. The
                setting of a split's name says where its manifest lies: that may be another place by now.
            base: the :attr:`~speech_adapters.encoders.encoder.Encoder.identity` of its encoder, whose name likewise.

        Raises:
            ConfigError: it was begun with other settings, data or another encoder; the message names all that differ.
            InputError: a folder that is no run's, that another process writes to, or that cannot be made.
        """
        if resume is not None:
            if path is not None:
                raise ConfigError("give --output or --resume, not both: each names the run folder.")
            path = find_run(file_name(recipe), resume, root)

        held = None if data is None else {**data, **({} if base is None else {"encoder": base})}

        def opened() -> RunFolder:
            if path is not None and is_run(Path(path)):
                run = cls(path)
                hold(run.path)
            else:
                run = cls._create(recipe, root, path, new=False)
            if not is_run(run.path):  # looked at under the lock: another process may have begun it by now
                run.save_config(config)
                if held is not None:
                    write_json(run.data_file, held)
                return run
            run.resumed = True
            known = read_json(run.data_file) if run.data_file.exists() else {}
            places = [key for key in held or {} if key in known]  # what lies there is compared below
            run._check_same(config, (*NEVER_COMPARED, *ignore, *places))
            if held is not None:
                run._check_data(held)
            run.forget_metrics(lambda line: False)  # none but a torn end, which the next line would be appended to
            return run

        return _once_for_all_processes(opened)

    @classmethod
    def _create(
        cls, recipe: str, root: str | os.PathLike[str], path: str | os.PathLike[str] | None, *, new: bool = True
    ) -> RunFolder:
        """A folder, locked. ``new``: none that a run was begun in."""
        try:
            if path is not None:
                folder = Path(path)
                left = [file.name for file in folder.iterdir()] if folder.is_dir() else []
                if not new and RUN_CONFIG in left:
                    left = []
                if "checkpoints" in left:
                    raise InputError(
                        f"{folder}: holds checkpoints of a run without {RUN_CONFIG}; go on with "
                        f"RunFolder({str(folder)!r}), or name a new folder"
                    )
                if set(left) - {".lock"} - {name for name in left if name.startswith(".config.yaml.")}:
                    raise InputError(f"{folder}: exists already and holds no run; name a new folder, or remove it")
                folder.mkdir(parents=True, exist_ok=True)  # a run killed before it wrote its configuration left it so
            else:
                parent = Path(root) / file_name(recipe)
                parent.mkdir(parents=True, exist_ok=True)
                stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
                for attempt in itertools.count(1):  # two runs may start within the same second
                    folder = parent / (stamp if attempt == 1 else f"{stamp}_{attempt}")
                    with contextlib.suppress(FileExistsError):
                        folder.mkdir()
                        break
        except OSError as error:
            raise InputError(f"{error.filename}: the run folder cannot be made ({error.strerror})") from error
        run = cls(folder, resumed=False)
        hold(run.path)
        if path is None:
            run._latest = folder.parent / "latest"
        return run

    def _check_data(self, data: Mapping[str, Any]) -> None:
        """The same files may hold something else by now: what was trained on them would count as trained on that."""
        if not self.data_file.exists():  # of a version that kept no such file, or killed before it was written
            write_json(self.data_file, data)
            return
        before, changed = read_json(self.data_file), []
        for split, now in data.items():
            then = before.get(split)
            if split == "encoder":
                known = flat(then or {})  # runs begun before this or that was recorded do not know it
                changed += [_of_encoder(k, known[k], v) for k, v in flat(now).items() if k in known and known[k] != v]
            elif isinstance(now, Mapping) and (not isinstance(then, Mapping) or then.get("sha256") != now["sha256"]):
                held = then.get("utterances") if isinstance(then, Mapping) else None
                count = "nothing" if held is None else f"{held} utterances"
                other = " with other lines" if held == now["utterances"] else ""  # a corrected text, perhaps
                changed.append(f"{split} ({now['name']}) held {count} then, {now['utterances']}{other} now")
        if changed:
            raise ConfigError(
                f"{self.path}: the data has changed since this run was begun: {'; '.join(changed[:10])}. Restore what "
                "it was, or name a new folder as --output."
            )

    def begin(self) -> None:
        """Called when the first update is about to be made: only now does ``latest`` point here."""
        if self._latest is not None:
            _point(self._latest, self.path.name)
            self._latest = None

    def _check_same(self, config: Any, ignore: Sequence[str]) -> None:
        before, now = flat(to_dict(load_config(type(config), self.config_file))), flat(to_dict(config))
        free = tuple(f"{key}." for key in (*ignore, *_free_to_change(config)))
        differing = [key for key in now | before if not f"{key}.".startswith(free) and now.get(key) != before.get(key)]
        if differing:
            shown = "; ".join(f"{key} was {before.get(key)!r}, now {now.get(key)!r}" for key in differing[:10])
            raise ConfigError(
                f"{self.path} was begun with other settings: {shown}. Go on with the former ones, or name a new "
                "folder as --output."
            )

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        release(self.path)

    def __fspath__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        return f"RunFolder({str(self.path)!r})"

    @property
    def config_file(self) -> Path:
        """The resolved configuration."""
        return self.path / RUN_CONFIG

    @property
    def metrics_file(self) -> Path:
        """One line per logged step."""
        return self.path / "metrics.jsonl"

    @property
    def results_file(self) -> Path:
        """Figures with intervals, parameters, seconds, versions."""
        return self.path / "results.json"

    @property
    def worst_file(self) -> Path:
        """Worst utterances, which the report shows; see :mod:`speech_adapters.reports.report` for their keys."""
        return self.path / "worst.json"

    @property
    def layer_weights_file(self) -> Path:
        """What each method weighs the encoder's layers with, which the report draws."""
        return self.path / "layer_weights.json"

    @property
    def detection_file(self) -> Path:
        """What the report draws DET curves and score histograms from, by system."""
        return self.path / "detection.json"

    @property
    def data_file(self) -> Path:
        """What the manifests held when the run was begun."""
        return self.path / "data.json"

    def checkpoint(self, name: str) -> Path:
        """What the training called ``name`` goes on from."""
        return self.path / "checkpoints" / f"{file_name(name)}.pt"

    @property
    def tensorboard(self) -> Path:
        """The folder of the event files."""
        return self.path / "tensorboard"

    def adapter(self, name: str) -> Path:
        """The folder of a saved adapter."""
        return self.path / "adapters" / file_name(name)

    def head(self, name: str) -> Path:
        """The folder of a saved head."""
        return self.path / "heads" / file_name(name)

    def trn(self, name: str) -> Path:
        """The folder of ``ref.trn`` and ``hyp.trn`` of one method or test set."""
        return self.path / "trn" / file_name(name)

    def predictions(self, name: str) -> Path:
        """The predicted classes of one method or test set, in JSON Lines."""
        return self.path / "predictions" / f"{file_name(name)}.jsonl"

    @property
    def trials_file(self) -> Path:
        """The trials that the run's scores are of, with both speakers of each."""
        return self.path / "trials.tsv"

    def scores(self, name: str) -> Path:
        """The scores of one trial list, ``enrol test score`` per line."""
        return self.path / "scores" / f"{file_name(name)}.txt"

    def save_config(self, config: Any) -> None:
        """Write the resolved configuration, which repeats the run."""
        save_config(config, self.config_file)

    def log_metrics(self, metrics: Mapping[str, Any]) -> None:
        """Append one line to ``metrics.jsonl``, such as ``{"step": 10, "loss": 2.1, "method": "elp"}``.

        Raises:
            InputError: the disk does not take it.
        """
        try:
            with self.metrics_file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(to_json(metrics), ensure_ascii=False) + "\n")
        except OSError as error:
            raise InputError(
                f"{self.metrics_file}: cannot be written ({error.strerror or error}); free the place, and go on with "
                "the run"
            ) from error

    def forget_metrics(self, lost: Callable[[dict[str, Any]], bool]) -> None:
        """Take out the lines that are about to come again, since they were logged after the last checkpoint."""
        if self.metrics_file.exists():
            kept = [line for line in self.read_metrics() if not lost(line)]
            write_text(self.metrics_file, (json.dumps(line, ensure_ascii=False) + "\n" for line in kept))

    def read_metrics(self) -> list[dict[str, Any]]:
        """The logged lines in order; none where nothing was logged."""
        return read_log(self.metrics_file)

    def took(self, figure: str, started: float) -> dict[str, float]:
        """The seconds since ``started`` (of ``time.perf_counter``), by the figure's name; none in a run that went on,
        where they would leave out its earlier processes."""
        return {} if self.resumed else {figure: time.perf_counter() - started}

    def write_results(self, results: Mapping[str, Any]) -> None:
        """Write ``results.json`` whole or not at all; figures that are not finite are written as null."""
        write_json(self.results_file, results)

    def read_results(self) -> dict[str, Any]:
        """The content of ``results.json``. Raises :class:`InputError` where the run did not finish."""
        return read_json(self.results_file)


def _point(link: Path, target: str) -> None:
    """Make or move a symbolic link in one step, so that it never dangles."""
    temporary = link.with_name(f".latest.{os.getpid()}.tmp")
    try:
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(target)
        os.replace(temporary, link)
    except OSError:  # some file systems know no links: `latest` is a convenience, the run goes on without
        temporary.unlink(missing_ok=True)


def _once_for_all_processes(make: Callable[[], RunFolder]) -> RunFolder:
    """Under ``torchrun`` the main process makes the folder and tells the others where it lies, or what is wrong."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return make()
    from speech_adapters.runs.processes import from_main, processes

    made: RunFolder | InputError | None = None
    if processes().is_main_process:
        try:
            made = make()
        except InputError as error:
            made = error
    text, resumed = from_main((os.fspath(made), made.resumed) if isinstance(made, RunFolder) else (str(made), None))
    if made is None:
        made = InputError(text) if resumed is None else RunFolder(text, resumed=resumed)
    if isinstance(made, InputError):
        raise made
    return made


def _of_encoder(key: str, then: Any, now: Any) -> str:
    """What a run has to say of an encoder that is another one by now."""
    if key == "fingerprint":
        return "the encoder held other weights then"
    return f"the encoder's {key} was {then!r}, now {now!r}"


def flat(values: Any, key: str = "") -> dict[str, Any]:
    """Nested settings by dotted key."""
    if not isinstance(values, dict) or not values:
        return {key: values}
    return {k: v for name, value in values.items() for k, v in flat(value, f"{key}.{name}" if key else name).items()}


def _free_to_change(config: Any, at: str = "") -> Iterator[str]:
    """Dotted keys of what parts of a configuration call ``free_to_change``: it changes no result."""
    for name, value in vars(config).items() if is_dataclass(config) else ():
        if name in getattr(config, "free_to_change", ()):
            yield at + name
        yield from _free_to_change(value, f"{at}{name}.")


def file_name(name: str) -> str:
    """A name that may be that of a file or folder. Raises ConfigError for others."""
    if not re.fullmatch(r"[\w][\w.+-]*", name):
        raise ConfigError(f"name '{name}': use letters, digits and _ . + - only, since it names a file or folder")
    return name
