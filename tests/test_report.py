"""The report page and the table: complete, self-contained, escaped, and honest about what is missing."""

from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st

from speech_adapters.data.audio import SAMPLE_RATE, write_audio
from speech_adapters.errors import InputError
from speech_adapters.reports.charts import Line, bar_chart, line_chart, scatter_chart, ticks
from speech_adapters.reports.report import method_rows, summary_table, write_report

VOID = {"meta", "br", "line", "circle", "rect", "polyline"}


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
    for shown in ("u1", "speaker s1", "1 errors in 2 words", "HYP: A   CAT", "held-out rate", '"torch": "2.11.0"'):
        assert shown in page.text
    assert "<strong>30.2</strong>" in text and "<strong>67.1</strong>" not in text
    assert page.tags.count("polyline") == 4
    assert text.count("<rect") == 5
    assert all(source.startswith("data:") for source in page.sources)
    assert not re.search(r"https?://|@import|url\(", text)
    assert "default-src 'none'" in text
    (source,) = page.sources
    sound, rate = soundfile.read(io.BytesIO(base64.b64decode(source.partition(",")[2])), dtype="float32")
    assert rate == SAMPLE_RATE
    torch.testing.assert_close(
        torch.from_numpy(sound), wave[SAMPLE_RATE // 2 : SAMPLE_RATE * 3 // 2], atol=1e-4, rtol=0
    )


def test_everything_is_escaped(tmp_path: Path) -> None:
    evil = "<script>alert('x')</script>&\"{style}"
    folder = write_run(
        tmp_path,
        results=results(
            task=evil, encoder=evil, adapter=evil, baselines={evil: entry(0.5)}, seed=evil,
            data={evil: {evil: evil}}, versions={evil: evil}, git_commit=evil, device=evil,
        ),
        metrics=[{"step": 0, "loss": 1.0, "method": evil}],
        config=f"x: {evil}\n",
        worst=[dict.fromkeys(("id", "speaker", "audio_filepath", "reference", "hypothesis", "errors", "words"), evil)],
        layer_weights={evil: {evil: 1.0}},
    )  # fmt: skip
    page, text = page_of(folder)
    assert "script" not in page.tags and "<script" not in text
    assert evil in page.text


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
        with pytest.raises(InputError, match=f"{name}.json.*: expected a JSON"):
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
    steps = [b - a for a, b in zip(found, found[1:], strict=False)]
    slack = 1e-6 + 1e-8 * max(steps)  # a value that close to a tick lies on it
    assert found[0] <= low + slack and found[-1] >= low + width - slack
    assert max(steps) - min(steps) < 1e-6 + 1e-6 * max(steps) and min(steps) > 0


def test_charts_of_odd_data_stay_inside_the_frame() -> None:
    assert line_chart([Line("none", [])], "x", "y") == "" and bar_chart({}, "x", "y") == ""
    for points in ([(0, 1.0)], [(5, 0.0), (5, 0.0)], [(0, 1000.0), (9, 0.01)], [(0, -3.0), (1, 4.0)]):
        chart = line_chart([Line("a", points)], "x", "y")
        drawn = re.findall(r'points="([^"]*)"', chart)[0].split()
        for x, y in (map(float, point.split(",")) for point in drawn):
            assert 56 <= x <= 628 and 10 <= y <= 222
    assert scatter_chart({}, "x", "y") == ""
    for named in ({"a": (1.0, 5.0)}, {"a": (7.0, 0.0), "b": (9e7, 0.0)}, {"<b>": (3e5, -1.0), "c": (10.0, 40.0)}):
        chart = scatter_chart(named, "x", "y")
        assert "<b>" not in chart and chart.count("<circle") == len(named)
        for x, y in re.findall(r'cx="([^"]*)" cy="([^"]*)"', chart):
            assert 56 <= float(x) <= 628 and 10 <= float(y) <= 222
    crowd = scatter_chart({f"method {i}": (2.1e6, 50 + 0.01 * i) for i in range(5)}, "x", "y")
    names = sorted(float(y) for y in re.findall(r'y="([^"]*)" text-anchor="\w+">method', crowd))
    assert all(below - above >= 11 for above, below in zip(names, names[1:], strict=False)) and ">5M<" in crowd
    assert 'height="0.0"' in bar_chart({"a": 0.0, "b": 1.0}, "x", "y")
