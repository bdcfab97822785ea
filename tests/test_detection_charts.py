"""DET curves, score histograms and their reports."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from test_report import Page, entry

from speech_adapters.metrics.detection import detection_curve
from speech_adapters.reports.detection_charts import chart_data, det_chart, score_histogram
from speech_adapters.reports.report import write_report


def system(distance: float, count: int = 4000, seed: int = 0) -> dict:
    rng = np.random.default_rng(seed)
    labels = rng.random(count) < 0.3
    return chart_data(detection_curve(rng.normal(labels * distance, 1), labels), (0.01, 0.05))


def places(chart: str, pattern: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(pattern, chart)]


def test_data_is_small_whatever_the_trials_and_true_to_the_curve():
    rng = np.random.default_rng(0)
    labels = rng.random(200_000) < 0.3
    curve = detection_curve(rng.normal(labels * 2.0, 1), labels)
    data = chart_data(curve, (0.01,))
    assert len(json.dumps(data)) < 50_000 and 200 < len(data["p_miss"]) <= 602
    points = set(zip(curve.p_miss.tolist(), curve.p_fa.tolist(), strict=True))
    assert set(zip(data["p_miss"], data["p_fa"], strict=True)) <= points
    assert (data["p_miss"][0], data["p_fa"][0], data["p_miss"][-1], data["p_fa"][-1]) == (0, 1, 1, 0)
    assert sum(data["histogram"]["target"]) == pytest.approx(1) and sum(
        data["histogram"]["non-target"]
    ) == pytest.approx(1)


def test_normal_scores_give_a_straight_line_through_the_marks():
    data = system(2.5, 100_000)
    chart = det_chart({"a": data})
    line = np.array(places(re.search(r'points="([^"]*)"', chart)[1], r"([\d.]+),([\d.]+)"))
    central = line[(line[:, 0] > 120) & (line[:, 1] > 60)]
    slope, offset = np.polyfit(*central.T, 1)
    assert np.abs(central[:, 1] - slope * central[:, 0] - offset).max() < 4  # of 332 pixels
    (circle,) = places(chart, r'<circle cx="([\d.]+)" cy="([\d.]+)"')
    assert abs(circle[1] - slope * circle[0] - offset) < 4
    assert chart.count("<rect") == 2 and "EER 10." in chart and "minDCF(0.05) 0." in chart


@pytest.mark.parametrize(
    ("scores", "labels"),
    [([2, 1], [1, 0]), ([1, 2], [1, 0]), ([1, 1, 1], [1, 0, 0]), ([-np.inf, 0, np.inf], [0, 1, 1])],
)
def test_odd_trials_still_give_charts_inside_the_frame(scores, labels):
    data = json.loads(json.dumps(chart_data(detection_curve(scores, labels), (0.01, 0.05))))
    chart = det_chart({"a": data, "b": data}) + score_histogram(data)
    Page(chart)
    drawn = places(chart, r'<circle cx="([\d.]+)" cy="([\d.]+)"') + places(chart, r"([\d.]+),([\d.]+)")
    assert drawn and all(0 <= x <= 640 and 0 <= y <= 400 for x, y in drawn)
    assert "nan" not in chart


def test_the_report_holds_the_charts_of_every_system(tmp_path: Path):
    name = "<b>lora</b>"
    (tmp_path / "results.json").write_text(json.dumps({"task": "speaker verification", **entry(0.2)}))
    (tmp_path / "detection.json").write_text(json.dumps({name: system(2), "frozen": system(1)}))
    text = write_report(tmp_path).read_text()
    page = Page(text)
    assert page.text.count(name) >= 2 and "false alarms, %" in page.text and "% of its kind" in page.text
    assert page.tags.count("polyline") == 2 and page.tags.count("polygon") == 4
    assert "b" not in page.tags
