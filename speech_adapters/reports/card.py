"""The card of a saved adapter: ``README.md`` with the metadata that a hub reads, filled from the files of its run.

Whatever stands in it was measured or recorded: what nothing says is said to be unknown.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speech_adapters.data.manifest import file_names
from speech_adapters.errors import ConfigError
from speech_adapters.files import write_text
from speech_adapters.metrics.comparison import FEW_SPEAKERS
from speech_adapters.reports.page import render_text
from speech_adapters.reports.summary import RATES, columns_of, figure, interval_of, method_rows
from speech_adapters.runs.results import MethodResults, Results, results_of
from speech_adapters.saving.adapters import named_method
from speech_adapters.saving.finding import find_parts
from speech_adapters.saving.parts import load_part

REPOSITORY = "USER/REPO"
"""Stands for the address in a card that is written before there is one."""
_PIPELINES = {
    "asr": "automatic-speech-recognition",
    "speaker": "audio-classification",
    "ctc": "automatic-speech-recognition",
    "classification": "audio-classification",
    "slots": "audio-classification",
}  # by task, else by type of head
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_FOLDS = {"lora", "adalora", "pissa", "vera", "ia3", "bitfit", "layer-norms", "full"}
_CALLS = {
    "asr": 'print(model.transcribe("call.wav"))',
    "ctc": 'print(model.transcribe("call.wav"))',
    "classification": 'print(model.classify("call.wav"))',
    "slots": 'print(model.classify("call.wav"))',
    "speaker": 'print(model.verify("one.wav", "other.wav"))',
}  # by type of head


@dataclass(frozen=True, kw_only=True)
class CardOptions:
    """What no file of a run says; None is left out of the metadata, and said to be unknown in the text.

    Attributes:
        licence: of the adapter, as the hub writes it (``cc-by-4.0``).
        language: such as ``en``.
        dataset: the test set's id on the hub, which ``.eval_results`` needs; ``task_id`` its task there.
    """

    licence: str | None = None
    language: str | None = None
    dataset: str | None = None
    task_id: str = "default"
    repository: str = REPOSITORY

    def __post_init__(self) -> None:
        for key in ("dataset", "repository"):
            value = getattr(self, key)
            if value is not None and not _HUB_ID.fullmatch(value):
                raise ConfigError(f"{key} {value!r}: give an id on the hub, such as user/name.")


@dataclass(frozen=True)
class _Saved:
    """An adapter, its head, and what its run found."""

    adapter: Path
    described: dict[str, Any]
    parameters: int
    head: dict[str, Any] | None
    results: Results | None
    own: MethodResults | None

    @classmethod
    def read(cls, folder: str | Path) -> _Saved:
        parts = find_parts(folder)
        if parts.adapter is None:
            raise ConfigError(f"{folder}: a card describes an adapter, and there is only a head.")
        described, tensors = load_part(parts.adapter, "adapter")
        head = None if parts.head is None else load_part(parts.head, "head")[0]["config"]
        results, own = results_of(parts.adapter, _domain(described)) or (None, None)
        return cls(parts.adapter, described, sum(t.numel() for t in tensors.values()), head, results, own)

    @property
    def domain(self) -> str | None:
        """That the adapter is for, of a run over several."""
        return _domain(self.described)

    @property
    def splits(self) -> dict[str, dict[str, Any]]:
        """The run's data by split, files without their folders."""
        data = {} if self.results is None else self.results.data
        known = {name: entry for name, entry in data.items() if isinstance(entry, Mapping)}
        return {name: {**entry, "name": file_names(str(entry.get("name") or ""))} for name, entry in known.items()}

    @property
    def head_type(self) -> str:
        return "" if self.head is None else str(self.head.get("head_type"))

    @property
    def method(self) -> str:
        return named_method(self.described["config"])

    @property
    def metrics(self) -> dict[str, Any]:
        """Of the run; of one that was saved elsewhere, of its own description."""
        if self.own is not None:
            return self.own.to_dict()["metrics"]
        card = self.described.get("card") or {}
        return {
            name: value for name, value in card.items() if isinstance(value, Mapping) and figure(value) is not None
        }

    @property
    def pipeline(self) -> str | None:
        task = None if self.results is None else self.results.task
        return _PIPELINES.get(str(task)) or _PIPELINES.get(self.head_type)


def _domain(described: Mapping[str, Any]) -> str | None:
    return (described.get("card") or {}).get("domain")


def write_card(folder: str | Path, options: CardOptions | None = None) -> Path:
    """Write ``README.md`` into an adapter's folder; returns its path. Errors as :func:`card`."""
    folder = Path(folder)
    write_text(folder / "README.md", card(folder, options))
    return folder / "README.md"


def write_cards(run: str | Path) -> None:
    """A card for each adapter of a run, in place of what an earlier end of the same run wrote."""
    for part in sorted((Path(run) / "adapters").glob("*/adapter.json")):
        write_card(part.parent)


def card(folder: str | Path, options: CardOptions | None = None) -> str:
    """The card of an adapter: its base, data, method, figures beside the baselines, cost, how to load it, limits.

    Args:
        folder: of a saved adapter, in its run or beside its head; where it lies in a run, the run's ``results.json``
            fills the card.

    Raises:
        CheckpointError: a damaged adapter or head. InputError: damaged results.
    """
    options, saved = options or CardOptions(), _Saved.read(folder)
    base = saved.described["base"]
    name = str(saved.described["name"])
    folds = all(part in _FOLDS for part in saved.method.split("+"))
    return render_text(
        "card.md.j2",
        metadata=metadata(folder, options, saved).strip(),
        title=_plain(f"{name}: {saved.method} on {base['name']}"),
        summary=_summary(saved),
        facts={key: _plain(value) for key, value in _facts(saved, options).items()},
        repository=options.repository,
        call=_CALLS.get(saved.head_type, 'print(model.embed("call.wav").shape)'),
        head=saved.head is not None,
        folds=folds,
        folding=_folding(saved, options.repository),
        opened=_opened(saved),
        peft=(saved.adapter / "adapter_config.json").is_file() and _HUB_ID.fullmatch(base["name"]) is not None,
        wavlm=base.get("family") == "wavlm",
        base=base["name"],
        table=_table(saved),
        note=_note(saved),
        data=_data(saved),
        limits=[_plain(limit) for limit in _limits(saved, options)],
    )


def metadata(folder: str | Path, options: CardOptions, saved: _Saved | None = None) -> str:
    """The YAML at the head of the card: library, base and its relation, pipeline, licence, language, figures."""
    from huggingface_hub import EvalResult, ModelCardData

    saved = saved or _Saved.read(folder)
    base = saved.described["base"]["name"]
    on_hub = _HUB_ID.fullmatch(base) is not None
    task = saved.pipeline or "feature-extraction"
    kept = (saved.described.get("card") or {}).get("data")
    test = _split(saved, "test").get("name") or file_names(str(kept or "own test set"))
    figures = [
        EvalResult(
            task_type=task,
            dataset_type=options.dataset or "private",
            dataset_name=str(test),
            metric_type=key,
            metric_value=value,
            metric_name=f"{key.upper()} {interval}".strip(),
        )
        for key, value, interval in _main_figures(saved)
    ]
    return ModelCardData(
        library_name="speech-adapters",
        base_model=base if on_hub else None,
        base_model_relation="adapter" if on_hub else None,
        pipeline_tag=saved.pipeline,
        license=options.licence,
        language=options.language,
        tags=["speech-adapters", "adapter", *saved.method.split("+")],
        metrics=[key for key, _, _ in _main_figures(saved)] or None,
        model_name=str(saved.described["name"]),
        eval_results=figures or None,
    ).to_yaml()


def eval_results(folder: str | Path, options: CardOptions) -> dict[str, str]:
    """The files of ``.eval_results`` by path, one a figure; none where the test set has no id on the hub."""
    import yaml
    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

    if options.dataset is None:
        return {}
    saved = _Saved.read(folder)
    files = {}
    for key, value, interval in _main_figures(saved):
        entry = EvalResultEntry(
            dataset_id=options.dataset,
            task_id=options.task_id,
            value=value,
            notes=f"{key} in percent {interval}".strip(),
        )
        files[f".eval_results/{key}.yaml"] = yaml.safe_dump(eval_result_entries_to_yaml([entry]), sort_keys=False)
    return files


def _main_figures(saved: _Saved) -> list[tuple[str, float, str]]:
    """Name, value (rates in percent) and interval of the figures."""
    found = []
    for key, entry in saved.metrics.items():
        value = figure(entry)
        if value is None or not isinstance(entry, Mapping):
            continue
        scale = 100 if key.lower() in RATES else 1
        ends = [f"{round(scale * end, 3):g}" for end in interval_of(entry) or ()]
        found.append((key, round(scale * value, 3), f"[{', '.join(ends)}]" if ends else ""))
    return found


def _summary(saved: _Saved) -> str:
    base = saved.described["base"]
    kind = {"ctc": "speech recognition", "classification": "classification", "slots": "intents in slots"}
    does = kind.get(saved.head_type, "speaker verification" if saved.head_type == "speaker" else "")
    of = f" for {does}, with its head" if does else ""
    return f"An adapter{of}: {saved.parameters:,} parameters on the frozen encoder {_plain(base['name'])}."


def _facts(saved: _Saved, options: CardOptions) -> dict[str, Any]:
    base, config = saved.described["base"], dict(saved.described["config"])
    settings = {key: value for key, value in config.items() if value not in (None, {}, []) and key != "method"}
    own, results = saved.own, saved.results
    of_all = (own.parameters or {}).get("percent") if own is not None else None
    peak = None if own is None else own.peak_memory_bytes
    facts = {
        "base": f"{base['name']} ({base.get('family') or 'family unknown'})",
        "base revision": base.get("revision") or ("not recorded" if _HUB_ID.fullmatch(base["name"]) else None),
        "base weights (SHA-256)": f"`{base['fingerprint']}`",
        "method": saved.method,
        "settings": ", ".join(f"{key} {_list(value)}" for key, value in settings.items()),
        "parameters": f"{saved.parameters:,}" + ("" if of_all is None else f"; with the head {of_all:.2f} % of all"),
        "head": _head(saved),
        "licence": options.licence or "not stated",
        "language": options.language or "not stated",
        "seeds": ", ".join(map(str, results.seeds or ())) if results is not None else None,
        "training": None if own is None or own.seconds is None else f"{own.seconds:,.1f} s",
        "peak memory": f"{peak / 2**20:,.0f} MiB" if peak else None,
        "hardware": None if results is None else results.environment.get("device"),
        "versions": None if results is None else ", ".join(
            f"{key} {value}" for key, value in (results.environment.get("versions") or {}).items() if value
        ),
        "commit of the code": None if results is None else results.environment.get("git_commit"),
    }  # fmt: skip
    return {key: value for key, value in facts.items() if value not in (None, "")}


def _head(saved: _Saved) -> str | None:
    if saved.head is None:
        return "none was saved beside it"
    vocabulary, labels = saved.head.get("vocabulary"), saved.head.get("labels")
    if isinstance(vocabulary, Mapping) and "tokens" in vocabulary:
        return f"CTC over {len(vocabulary['tokens'])} symbols, texts normalised by {saved.head.get('normalizer')}"
    return f"{saved.head_type}: {', '.join(labels)}" if labels else saved.head_type


def _table(saved: _Saved) -> str:
    """The method and its baselines as Markdown; the part's own figures where it lies in no run."""
    if saved.results is not None:
        rows = method_rows(saved.results.to_dict())
    elif saved.metrics:
        rows = [{"method": saved.method, "metrics": saved.metrics}]
    else:
        return ""
    columns = columns_of(rows)
    lines = [[_plain(column.title) for column in columns], ["---:" if c.numeric else "---" for c in columns]]
    for row in range(len(rows)):
        cells = []
        for column in columns:
            text = " ".join(filter(None, (column.cells[row], column.intervals[row] if column.intervals else "")))
            cells.append(f"**{_plain(text)}**" if row == column.best else _plain(text))
        lines.append(cells)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _note(saved: _Saved) -> str:
    test = _split(saved, "test")
    on = f" on {_plain(test['name'])}" if test.get("name") else ""
    others = "The baselines were trained on the same data with as many updates."
    if saved.domain is not None:
        others = "The others are adapters of other domains, and what was made of all of them."
    known = "95 % bootstrap intervals by speaker in brackets; bold where no interval overlaps."
    return f"Rates in percent{on}, {known} {others}"


def _split(saved: _Saved, name: str) -> Mapping[str, Any]:
    return saved.splits.get(name, {})


def _data(saved: _Saved) -> str:
    lines = ["| split | name | hours | speakers | utterances | SHA-256 |", "|---|---|---:|---:|---:|---|"]
    for name, entry in saved.splits.items():
        keys = [entry.get(key) for key in ("name", "hours", "speakers", "utterances")]
        cells = ["" if value is None else _plain(value) for value in keys]
        lines.append(f"| {_plain(name)} | {' | '.join(cells)} | `{_plain(entry.get('sha256') or 'not recorded')}` |")
    return "\n".join(lines) if saved.splits else ""


def _limits(saved: _Saved, options: CardOptions) -> list[str]:
    found = [f"It works on the weights of {saved.described['base']['name']} named above alone."]
    train, test = _split(saved, "train"), _split(saved, "test")
    speakers = test.get("speakers")
    if isinstance(speakers, int) and speakers < FEW_SPEAKERS:
        found.append(
            f"The test set has {speakers} speaker{'' if speakers == 1 else 's'}, so intervals say little of others."
        )
    if train.get("hours") is not None:
        of = f" of {train['speakers']} speakers" if train.get("speakers") else ""
        found.append(f"It was trained on {train['hours']} hours{of}; on other domains its figures were not measured.")
    if saved.results is not None and len(saved.results.seeds or [0]) == 1:
        found.append("One seed: how much the figures move from training to training was not measured.")
    found.append("Figures by age, sex, accent or dialect of the speakers were not measured.")
    if options.licence is None:
        found.append("No licence is stated: ask before you pass it on.")
    return found


def _folding(saved: _Saved, repository: str) -> str:
    verb = "export --adapter" if saved.head is not None else "fold"
    return f"{verb} {repository}@COMMIT folded"


def _opened(saved: _Saved) -> str:
    pipeline = {"ctc": "automatic-speech-recognition", "classification": "audio-classification"}.get(saved.head_type)
    if pipeline is None:
        return 'from transformers import AutoModel\n\nmodel = AutoModel.from_pretrained("folded")'
    return f'from transformers import pipeline\n\nprint(pipeline("{pipeline}", "folded")("call.wav"))'


def _list(value: Any) -> str:
    return "/".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _plain(value: Any) -> str:
    """A value within a line or cell of Markdown: no breaks, bars, or tags."""
    text = " ".join(str(value).split())
    return text.replace("|", "\\|").replace("<", "&lt;")
