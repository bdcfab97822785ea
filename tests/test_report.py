"""The report page and the table: complete, self-contained, escaped, and honest about what is missing."""

from __future__ import annotations

import base64
import copy
import io
import itertools
import json
import math
import random
import re
import shlex
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st

from speech_adapters import ClassificationHead, CTCHead, SpeakerHead, SpeechAdapterModel
from speech_adapters.cli import main as command_line
from speech_adapters.data.audio import SAMPLE_RATE, write_audio
from speech_adapters.errors import InputError
from speech_adapters.files import to_json
from speech_adapters.heads import HeadConfig
from speech_adapters.heads.base import HEADS
from speech_adapters.metrics.detection import detection_curve
from speech_adapters.reports.charts import Line, bar_chart, line_chart, scatter_chart, ticks
from speech_adapters.reports.detection_charts import chart_data
from speech_adapters.reports.page import render
from speech_adapters.reports.report import method_rows, summary_table, write_report
from speech_adapters.reports.sound import log_mel
from speech_adapters.reports.summary import columns_of
from speech_adapters.reports.usage import how_to_use
from speech_adapters.text import Vocabulary

VOID = {"meta", "br", "line", "circle", "rect", "polyline", "polygon", "img"}


class Page(HTMLParser):
    """Checks that tags nest, and gathers what the page refers to and its visible text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "data")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


def entry(wer: float, **more: Any) -> dict[str, Any]:
    return {
        "metrics": {
            "wer": {"value": wer, "low": wer - 0.02, "high": wer + 0.02},
            "substitutions": 1200, "deletions": 30, "insertions": 4, "words": 5000, "normalizer": "librispeech",
        },
        "parameters": {"trainable": 812345, "total": 9_000_000, "percent": 9.026},
        "seconds": 12.34, "audio_seconds_per_second": 210.0, "peak_memory_bytes": 3 * 2**30,
        **more,
    }  # fmt: skip


def results(**more: Any) -> dict[str, Any]:
    return {
        "task": "asr",
        "encoder": "tiny-wavlm",
        "adapter": "elp",
        "data": {
            "train": {"sha256": "a" * 64, "hours": 5.0123, "speakers": 120},
            "test": {"sha256": "b" * 64, "hours": 0.5, "speakers": 20},
        },
        "seed": 7,
        **entry(0.302),
        "baselines": {"head only": entry(0.671), "old": {"metrics": {"cer": 0.25}}},
        **more,
    }


def write_run(folder: Path, **files: Any) -> Path:
    for name, content in files.items():
        if name == "metrics":
            (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in content))
        elif name == "config":
            (folder / "config.yaml").write_text(content)
        else:
            (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def page_of(folder: Path, **options: Any) -> tuple[Page, str]:
    text = write_report(folder, **options).read_text()
    return Page(text), text


def test_table_aligns_and_drops_empty_columns() -> None:
    table = summary_table(method_rows(results()))
    lines = table.splitlines()
    header = "method WER % 95 % interval CER % sub del ins trainable % of all seconds audio s/s peak memory"
    assert lines[0].split() == header.split()
    assert "elp" in lines[2] and "30.2   [28.2, 32.2]" in lines[2] and "1,200" in lines[2] and "3.00 GiB" in lines[2]
    assert lines[4].split() == ["old", "25.0"]
    end = lines[0].index("WER %") + len("WER %")
    assert [line[end - 4 : end] for line in lines[2:4]] == ["30.2", "67.1"]
    assert "words" not in table and "librispeech" not in table


def test_table_of_metrics_that_are_no_error_rates() -> None:
    rows = [
        {"method": "a", "metrics": {"ua": {"value": 0.7, "low": 0.6, "high": 0.8}, "min_dcf": 0.4321}},
        {"method": "b", "metrics": {"ua": None, "min_dcf": float("nan")}},
    ]
    lines = summary_table(rows).splitlines()
    assert lines[0].split() == "method UA % 95 % interval minDCF".split()
    assert lines[2].split() == ["a", "70.0", "[60.0,", "80.0]", "0.432"]
    assert lines[3].split() == ["b"]
    assert summary_table([]).strip() == ""


def test_page_holds_everything_and_fetches_nothing(tmp_path: Path) -> None:
    audio = tmp_path / "a.wav"
    wave = torch.sin(torch.arange(2 * SAMPLE_RATE) / 20) / 2
    write_audio(audio, wave)
    log = [{"step": s, "loss": 5 / (s + 1), "method": m} for m in ("elp", "head only") for s in range(900)]
    log += [{"step": s, "eval_loss": 2.0, "eval_wer": 0.5, "method": "elp"} for s in (100, 200)]
    utterance = {
        "id": "u1", "speaker": "s1", "audio_filepath": str(audio), "offset": 0.5, "duration": 1.0,
        "reference": "THE CAT", "hypothesis": "A CAT", "alignment": "REF: THE CAT\nHYP: A   CAT\n", "errors": 1,
        "words": 2,
    }  # fmt: skip
    folder = write_run(
        tmp_path,
        results=results(device="a CPU", git_commit="c" * 40, versions={"torch": "2.11.0"}),
        metrics=log,
        config="seed: 7\n",
        worst=[utterance],
        layer_weights={"elp": [0.1, 0.2, 0.7], "named": {"cnn": 0.5, "layer 1": -0.5}},
    )
    page, text = page_of(folder)
    for shown in ("asr: elp on tiny-wavlm", "5.01 hours, 120 speakers", "30.2", "67.1", "aaaaaaaaaaaa", "seed: 7"):
        assert shown in page.text
    for shown in ("u1", "speaker s1", "1 error in 2 words", "HYP: A   CAT", "dev rate, %", '"torch": "2.11.0"'):
        assert shown in page.text
    assert "<strong>30.2</strong>" in text and "<strong>67.1</strong>" not in text
    assert page.tags.count("polyline") == 4
    assert text.count("<rect") == 5
    assert all(source.startswith("data:") for source in page.sources)
    assert not re.search(r"https?://|@import|url\(", text) and "script" not in page.tags
    assert "default-src &#39;none&#39;" in text
    source, picture = page.sources
    pixels = base64.b64decode(picture.partition(",")[2])
    assert pixels.startswith(b"\x89PNG") and int.from_bytes(pixels[16:20]) == 101  # a column every 10 ms of a second
    sound, rate = soundfile.read(io.BytesIO(base64.b64decode(source.partition(",")[2])), dtype="float32")
    assert rate == SAMPLE_RATE
    torch.testing.assert_close(
        torch.from_numpy(sound), wave[SAMPLE_RATE // 2 : SAMPLE_RATE * 3 // 2], atol=1e-4, rtol=0
    )


EVIL = "<script>alert('x')</script>&\"' onload=x {style}{{ 7 * 7 }}</title></style><b>"


def everything(text: str = "elp") -> dict[str, Any]:
    """Every file of a run folder, ``text`` in each place where a text may stand."""
    rate = {"value": 0.5, "low": 0.4, "high": 0.6}
    classes = {
        "per_class": {text: {"support": 3, "recall": rate, "precision": rate, "f1": rate}},
        "confusion": {"labels": [text], "counts": [[3]]},
    }
    own = entry(0.3)
    curve = chart_data(detection_curve([0.1, 0.9, 0.4, 0.8], [0, 1, 0, 1]), (0.01,))
    mark = {"name": text, "p_miss": 0.5, "p_fa": 0.25}
    mistakes = [
        {
            "id": text,
            "speaker": text,
            "reference": text,
            "hypothesis": text,
            "alignment": text,
            "errors": 1,
            "words": 2,
        },
        {"id": text, "reference": text, "hypothesis": text, "audio_filepath": text, "offset": 0.0, "duration": 1.0},
    ]
    return {
        "results": results(
            task=text, encoder=text, adapter=text, seed=text, versions={text: text}, git_commit=text, device=text,
            data={"train": {text: text, "hours": 5.0}, text: {text: text}},
            metrics=own["metrics"] | classes | {text: rate},
            baselines={f"{text} 0": entry(0.5), f"{text} 1": entry(0.5) | {"metrics": own["metrics"] | classes}},
        ),
        "metrics": [{"step": i, "loss": 1.0, "eval_wer": 0.5, "method": text, f"{text}_loss": 0.5} for i in range(3)],
        "config": f"x: {text}\n",
        "worst": mistakes,
        "layer_weights": {text: {text: 1.0}, "plain": [0.5, 0.5]},
        "detection": {
            text: to_json(curve) | {"marks": [mark]},
            f"{text} 2": to_json(curve),
        },
        "domains": {"metric": text, "cells": {text: {text: rate}, "other": {text: rate | {"value": 0.9}}}},
        "attention": {text: {text: {text: 0.5}}},
    }  # fmt: skip


def test_everything_is_escaped(tmp_path: Path) -> None:
    (tmp_path / "adapters" / "elp").mkdir(parents=True)
    plain, _ = page_of(write_run(tmp_path, **everything()))
    page, text = page_of(write_run(tmp_path, **everything(EVIL)))
    assert not {"script", "b"} & (set(page.tags) - set(plain.tags)) and "<script" not in text
    # The lines to copy belong to the plain page alone: no folder has such a name.
    assert len(page.tags) <= len(plain.tags) and page.text.count(EVIL) >= 20
    assert "49" not in re.sub(r"[\d.]{3,}", "", page.text)  # nor is a template in a name carried out
    curves = render("curves.html.j2", title=EVIL, chart=line_chart([Line(EVIL, [(0, 1), (1, 2)])], EVIL, EVIL))
    assert "script" not in Page(curves).tags and Page(curves).text.count(EVIL) == 5


@pytest.mark.parametrize(
    ("head", "title", "answer"),
    [
        (CTCHead(Vocabulary.wav2vec2()), "Transcribe", lambda model, file: model.transcribe(file).text),
        (ClassificationHead(("no", "yes")), "Classify", lambda model, file: model.classify(file).label),
        (SpeakerHead(("s1", "s2")), "Embed", lambda model, file: str(model.embed(file))),
        (None, "Embed", lambda model, file: str(model.embed(file))),
    ],
)
def test_copied_lines_quote_names_and_answer_as_the_model_does(
    head: HeadConfig | None, title: str, answer: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / 'it\'s; a "run" $HOME'
    model = SpeechAdapterModel.from_pretrained("tiny-wavlm")
    model.add_adapter("lora-l-seed0", "lora+l")
    model.save_adapter("lora-l-seed0", folder / "adapters" / "lora-l-seed0")
    if head is not None:
        model.add_head("own", head)
        model.save_head("own", folder / "heads" / "lora-l-seed0")
    shown = how_to_use(results(adapter="lora+l"), folder)
    heard = tmp_path / "call.wav"
    write_audio(heard, torch.rand(SAMPLE_RATE) - 0.5)
    capsys.readouterr()
    exec(shown["Python"].replace("'call.wav'", repr(str(heard))), {})
    assert capsys.readouterr().out.strip() == answer(model.eval(), heard).strip()
    command = shlex.split(shown[title].replace("\\\n", " "))
    assert Path(command[command.index("--adapter") + 1]) == folder / "adapters" / "lora-l-seed0"
    places = {"call.wav": str(heard), "voices.npz": str(tmp_path / "voices.npz")}
    with pytest.raises(SystemExit, match="^0$"):
        command_line([places.get(word, word) for word in command[1:]])
    assert how_to_use(results(adapter="other"), folder) == {} == how_to_use(results(encoder=None), folder)


def test_copied_lines_ask_a_head_of_ones_own_type_for_its_logits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("speech_adapters.heads.base.HEADS", dict(HEADS))

    @dataclass
    class Own(ClassificationHead):
        head_type = "own-in-a-report"

    model = SpeechAdapterModel.from_pretrained("tiny-wavlm")
    model.add_adapter("a", "lora")
    model.save_adapter("a", tmp_path / "adapters" / "lora-seed0")
    model.add_head("own", Own(("no", "yes")))
    model.save_head("own", tmp_path / "heads" / "lora-seed0")
    write_audio(tmp_path / "call.wav", torch.rand(SAMPLE_RATE) - 0.5)
    shown = how_to_use(results(adapter="lora"), tmp_path)
    assert list(shown) == ["Python"]
    capsys.readouterr()
    exec(shown["Python"].replace("'call.wav'", repr(str(tmp_path / "call.wav"))), {})
    assert capsys.readouterr().out.startswith("tensor([[")


def test_copied_lines_of_a_fusion_load_its_adapters_first(tmp_path: Path) -> None:
    adapters = [f"{name}-seed{seed}" for name in ("start", "studio", "telephone") for seed in (0, 1)]
    others = ["heads/asr", "heads/fusion-seed0", "fusions/fusion-seed0"]
    for part in (*(f"adapters/{name}" for name in adapters), *others):
        (tmp_path / part).mkdir(parents=True)
    for head in ("asr", "fusion-seed0"):
        (tmp_path / "heads" / head / "head.json").write_text('{"config": {"head_type": "ctc"}}')
    saved = tmp_path / "fusions/fusion-seed0/fusion.json"
    saved.write_text('{"composition": {"kind": "fuse", "members": ["telephone", "studio"], "name": "fusion"}}')
    shown = how_to_use(results(task="asr domains", adapter="fusion"), tmp_path)
    calls = re.findall(r"model\.(load_\w+)\('.*/([\w-]+)'\)", shown["Python"])
    members = [("load_adapter", "telephone-seed0"), ("load_adapter", "studio-seed0")]
    assert calls == [*members, ("load_head", "fusion-seed0"), ("load_fusion", "fusion-seed0")]
    assert list(shown) == ["Python"]
    saved.write_text('{"composition": {"kind": "fuse", "members": ["telephone", "elsewhere"], "name": "fusion"}}')
    assert how_to_use(results(task="asr domains", adapter="fusion"), tmp_path) == {}


def test_a_method_has_one_colour_in_every_chart(tmp_path: Path) -> None:
    run = everything("first")
    run["results"]["adapter"] = "lora+l"
    run["results"]["baselines"] = {"second": entry(0.5), "third": entry(0.6)}
    run["metrics"] = [
        {"step": s, "loss": 1.0 + s, "eval_loss": 1.5, "method": m}
        for s in range(3) for m in ("third", "lora-l-fold1-seed0", "lora-l-fold2-seed0")
    ]  # fmt: skip
    run["detection"] = {"third": run["detection"]["first"], "lora+l": run["detection"]["first"]}
    run["layer_weights"] = {"third": [0.5, 0.5]}
    _, text = page_of(write_run(tmp_path, **run))
    lines = re.findall(r'stroke:(var\(--c\d+\))" stroke-dasharray="[^"]*"/></svg> ([^<:]*)', text)
    dots = re.findall(r'fill:(var\(--c\d+\))"><title>([^:<]*): [\dMk.]+, ', text)
    shown = {(color, name) for color, name in lines + dots if name != "target"}
    colors = {name: color for color, name in shown}
    assert colors == {"lora+l": "var(--c0)", "second": "var(--c1)", "third": "var(--c2)"}
    assert len(shown) == 3 and "third: dev loss" in text
    assert len(re.findall(r'<rect [^>]*style="fill:var\(--c2\)', text)) == 2  # its layer weights


def test_bold_is_only_what_no_interval_reaches() -> None:
    def best(**values: tuple[float, ...]) -> int | None:
        metric = next(iter(values)).rstrip("0123456789")
        rows = [{"method": m, "metrics": {metric: dict(zip(("value", "low", "high"), v, strict=False))}}
                for m, v in values.items()]  # fmt: skip
        return columns_of(rows)[1].best

    assert best(wer0=(0.2, 0.1, 0.3), wer1=(0.5, 0.4, 0.6)) == 0
    assert best(wer0=(0.2, 0.1, 0.3), wer1=(0.25, 0.2, 0.4)) is None
    assert best(wer0=(0.2, 0.1, 0.3), wer1=(0.5,)) is None and best(wer0=(0.2, 0.1, 0.3)) is None
    assert best(ua0=(0.2, 0.1, 0.3), ua1=(0.5, 0.4, 0.6)) == 1
    assert best(kappa0=(0.2, 0.1, 0.3), kappa1=(0.5, 0.4, 0.6)) is None  # whose direction is not known


def test_one_channel_of_a_call_is_heard(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "call.wav", np.zeros((16_000, 2)), 16_000)
    heard = {"audio_filepath": str(tmp_path / "call.wav"), "offset": 0.0, "duration": 1.0, "channel": 1}
    mistake = {"id": "u1", "reference": "calm", "hypothesis": "angry", **heard}
    page, source = page_of(write_run(tmp_path, results=results(), worst=[mistake]))
    assert "no audio" not in page.text and "data:audio/flac" in source


def test_classes_are_not_called_words(tmp_path: Path) -> None:
    mistake = {"id": "u1", "reference": "calm (20 %)", "hypothesis": "angry (80 %)"}
    page, _ = page_of(write_run(tmp_path, results=results(), worst=[mistake]))
    assert "true class" in page.text and "predicted" in page.text and "Most confident mistakes" in page.text
    assert not re.search("REF|HYP|reference|hypothesis|Worst", page.text)


ODD = (
    None,
    True,
    -1,
    0,
    1e308,
    -1e-320,
    10**400,
    math.nan,
    math.inf,
    "",
    "x",
    "\ud800",
    "\0",
    [],
    {},
    [[]],
    {"a": []},
)


def places_of(value: Any) -> list[tuple[Any, Any]]:
    """Every container of a JSON value with each of its keys or indices."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    return [(value, key) for key in keys] + [place for key in keys for place in places_of(value[key])]


def mutate(content: Any, rng: random.Random) -> str:
    """The content as JSON after one damage: another value, a key that went or changed, a cut, a wrong byte."""
    content = copy.deepcopy(content)
    box, key = rng.choice(places_of([content]))
    kind = rng.randrange(6)
    if kind == 0 and isinstance(box, dict):
        box[f"{key}x"] = box.pop(key)
    elif kind == 1:
        del box[key]
    else:
        box[key] = rng.choice(ODD)
    text = json.dumps(content)
    if kind == 4:
        return text[: rng.randrange(len(text))]
    if kind == 5:
        at = rng.randrange(len(text))
        return text[:at] + rng.choice('[]{}",:0-e\n\u2028') + text[at + 1 :]
    return text


def page_or_message(folder: Path) -> str:
    """The report's text, its tags checked, or the one sentence that says why there is none."""
    try:
        return page_of(folder)[1]
    except InputError as error:
        return str(error)


@pytest.mark.parametrize("name", sorted(set(everything()) - {"config"}))
def test_damaged_files_give_a_page_or_a_sentence(name: str, tmp_path: Path) -> None:
    whole = everything()
    write_run(tmp_path, **whole)
    path = tmp_path / ("metrics.jsonl" if name == "metrics" else f"{name}.json")
    rng = random.Random(name)
    refused = 0
    for _ in range(40):
        if name == "metrics":
            lines = [json.dumps(line) for line in whole[name]]
            lines[rng.randrange(3)] = mutate(whole[name][0], rng)
            path.write_text("\n".join(lines))
        else:
            path.write_text(mutate(whole[name], rng))
        outcome = page_or_message(tmp_path)
        refused += not outcome.startswith("<!doctype")
        if outcome.startswith("<!doctype"):
            assert not re.search(r'(x|y|cx|cy|width|height|points)="[^"]*(nan|inf)', outcome)
        else:
            assert path.name in outcome
    assert 0 < refused < 40
    for damage in (b"\xff\xfe", b"[" * 100_000, b"1" * 10_000, b'"' * 3):
        path.write_bytes(damage + b"\n{}\n")
        with pytest.raises(InputError, match=re.escape(path.name)):
            write_report(tmp_path)


def test_errors_name_file_and_key(tmp_path: Path) -> None:
    run = everything()
    run["results"]["baselines"]["elp 1"]["metrics"]["confusion"] = {"labels": ["a"], "counts": [[1, 2]]}
    with pytest.raises(InputError, match=r"results.json: baselines.elp 1.metrics.confusion: the counts of 1 classes"):
        write_report(write_run(tmp_path, **run))
    run = everything()
    run["worst"][1]["duration"] = "long"
    with pytest.raises(InputError, match=r"worst.json: 1.duration: expected .*number.*, got 'long'"):
        write_report(write_run(tmp_path, **run))
    run = everything()
    run["detection"]["elp"]["p_fa"][0] = 2
    with pytest.raises(InputError, match=r"detection.json: elp: error rates lie between 0 and 1"):
        write_report(write_run(tmp_path, **run))


def test_spectrogram_of_a_tone_is_dark_at_its_pitch() -> None:
    low, high = (
        log_mel(np.sin(np.arange(8000) * hertz * 2 * np.pi / SAMPLE_RATE).astype("f")) for hertz in (300, 5000)
    )
    assert low.shape == (64, 51) and low.dtype == np.uint8
    assert low.mean(1).argmin() > 48 > 16 > high.mean(1).argmin()  # the first row is the highest band
    assert log_mel(np.zeros(3, dtype="f")).shape[0] == 64


def test_a_bare_run_still_gets_a_page(tmp_path: Path) -> None:
    page, _ = page_of(write_run(tmp_path, results={"task": "asr"}))
    assert "Worst utterances" not in page.text and "Training" not in page.text


def test_missing_or_broken_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="results.json: no such file"):
        write_report(tmp_path)
    write_run(tmp_path, results=results())
    (tmp_path / "worst.json").write_text("[")
    with pytest.raises(InputError, match="worst.json:1: not JSON"):
        write_report(tmp_path)
    for name, content in (("worst", {}), ("layer_weights", []), ("metrics", [3]), ("results", [])):
        (tmp_path / "worst.json").unlink(missing_ok=True)
        write_run(tmp_path, **{name: content})
        with pytest.raises(InputError, match=f"{name}.json.*: expected "):
            write_report(tmp_path)
        write_run(tmp_path, results=results(), worst=[], layer_weights={}, metrics=[])
    assert not (tmp_path / "report.html").exists()


def test_audio_that_cannot_be_shown_says_why(tmp_path: Path) -> None:
    write_audio(tmp_path / "a.wav", torch.rand(SAMPLE_RATE) - 0.5)
    worst = [{"id": str(i), "audio_filepath": name} for i, name in enumerate(["a.wav", "a.wav", "none.wav"])]
    folder = write_run(tmp_path, results=results(), worst=worst)
    page, text = page_of(folder, most_audio_bytes=60_000)
    assert page.tags.count("audio") == 1 and len(text) < 80_000
    assert "size limit" in page.text and "none.wav" in page.text


@given(st.floats(-1e6, 1e6), st.floats(0, 1e6))
def test_ticks_cover_the_range_in_few_even_steps(low: float, width: float) -> None:
    found = ticks(low, low + width)
    assert 2 <= len(found) <= 9
    steps = [b - a for a, b in itertools.pairwise(found)]
    slack = 1e-6 + 1e-8 * max(steps)  # a value that close to a tick lies on it
    assert found[0] <= low + slack and found[-1] >= low + width - slack
    assert max(steps) - min(steps) < 1e-6 + 1e-6 * max(steps) and min(steps) > 0


def test_charts_of_odd_data_stay_inside_the_frame() -> None:
    assert line_chart([Line("none", [])], "x", "y") == "" and bar_chart({}, "x", "y") == ""
    for points in ([(0, 1.0)], [(5, 0.0), (5, 0.0)], [(0, 1000.0), (9, 0.01)], [(0, -3.0), (1, 4.0)]):
        chart = line_chart([Line("a", points)], "x", "y")
        drawn = re.findall(r'points="([^"]*)"', chart)[0].split()
        for x, y in (map(float, point.split(",")) for point in drawn):
            assert 50 <= x <= 428 and 10 <= y <= 202
    assert scatter_chart({}, "x", "y") == ""
    for named in ({"a": (1.0, 5.0)}, {"a": (7.0, 0.0), "b": (9e7, 0.0)}, {"<b>": (3e5, -1.0), "c": (10.0, 40.0)}):
        chart = scatter_chart(named, "x", "y")
        assert "<b>" not in chart and chart.count("<circle") == len(named)
        for x, y in re.findall(r'cx="([^"]*)" cy="([^"]*)"', chart):
            assert 50 <= float(x) <= 428 and 10 <= float(y) <= 202
    crowd = scatter_chart({f"method {i}": (2.1e6, 50 + 0.01 * i) for i in range(5)}, "x", "y")
    names = sorted(float(y) for y in re.findall(r'y="([^"]*)" text-anchor="\w+">method', crowd))
    assert all(below - above >= 11 for above, below in itertools.pairwise(names)) and ">5M<" in crowd
    assert 'height="0.0"' in bar_chart({"a": 0.0, "b": 1.0}, "x", "y")
