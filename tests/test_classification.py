"""Classifying a manifest, files of predictions, the report's part, and the evaluation recipe on its command line."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from scripts import load_script
from small_encoders import stock_model
from small_models import small_model
from test_report import Page

from speech_adapters.config import parse_cli
from speech_adapters.data.audio import read_audio, write_audio
from speech_adapters.data.batches import SpeechDataset, evaluation_loader
from speech_adapters.data.manifest import Manifest, Utterance
from speech_adapters.data.predictions import read_predictions, write_predictions
from speech_adapters.errors import CheckpointError, ConfigError, InputError, ManifestError
from speech_adapters.heads.base import HeadConfig, HeadModule, HeadOutput
from speech_adapters.metrics.classification import ClassificationResult, score_classification
from speech_adapters.model import SpeechAdapterModel
from speech_adapters.reports.report import confusion_table, write_report
from speech_adapters.reports.run_files import Confusion
from speech_adapters.tasks.base import Corpus
from speech_adapters.tasks.classification import Classification, confident_mistakes, evaluate_classification

ROOT = Path(__file__).parents[1]
LABELS = ("high", "low", "middle")


@dataclass(kw_only=True)
class MeanHead(HeadConfig):
    """The smallest head that classifies utterances: a linear layer on the mean of the real frames."""

    head_type = "mean-of-frames-in-a-test"
    labels: tuple[str, ...] = LABELS
    flat: bool = True

    def build(self, input_size: int) -> HeadModule:
        return MeanHeadModule(self, input_size)

    def target(self, utterance: Utterance) -> list[int]:
        return [self.labels.index(utterance.emotion)]


class MeanHeadModule(HeadModule):
    def __init__(self, config: MeanHead, input_size: int) -> None:
        super().__init__(config, input_size)
        self.linear = torch.nn.Linear(input_size, len(config.labels))

    def forward(self, features, lengths):
        real = (torch.arange(features.shape[1], device=features.device) < lengths[:, None])[..., None]
        mean = (features * real).sum(1) / lengths[:, None]
        logits = self.linear(mean)
        return HeadOutput(logits if self.config.flat else logits[:, None])

    def loss(self, output, targets):
        return torch.nn.functional.cross_entropy(output.logits, targets)

    def predict(self, output):
        return list(output.logits.softmax(-1).cpu())


@pytest.fixture(scope="module")
def manifest(tmp_path_factory) -> Manifest:
    folder = tmp_path_factory.mktemp("tones")
    rng, utterances = np.random.default_rng(0), []
    for index in range(12):
        time = np.arange(8000 + 700 * (index * 5 % 12)) / 16000
        tone = 0.3 * np.sin(2 * np.pi * (200 + 900 * (index % 3)) * time) + rng.normal(0, 0.01, len(time))
        write_audio(folder / f"u{index}.wav", torch.tensor(tone, dtype=torch.float32))
        utterances.append(
            Utterance(
                id=f"u{index}", audio_filepath=folder / f"u{index}.wav", duration=len(time) / 16000,
                emotion=("low", "middle", "high")[index % 3], speaker=f"s{index // 4}", extra={"pitch": "high"},
            )
        )  # fmt: skip
    Manifest(utterances).write(folder / "test.jsonl")
    return Manifest.read(folder / "test.jsonl")


@pytest.fixture
def model():
    model = small_model()
    torch.manual_seed(4)
    model.add_head("emotion", MeanHead())
    torch.nn.init.normal_(model.head.linear.weight, std=3.0)
    return model


def test_every_utterance_gets_its_own_prediction(model, manifest):
    scored = evaluate_classification(model, manifest, batch_seconds=2.0, progress=False)
    assert scored.result.labels == LABELS and scored.cost.seconds > 0 and scored.cost.audio_seconds_per_second > 0
    assert [u.id for u in scored.result.runs[0]] == [u.id for u in manifest], "batches by length, results in order"
    for utterance, classified in zip(manifest, scored.result.runs[0], strict=True):
        with torch.no_grad():
            logits = model(read_audio(utterance.audio_filepath)[None]).logits
        alone = logits.softmax(1)[0]
        assert classified.probabilities == pytest.approx(alone.tolist(), abs=1e-4)
        assert classified.prediction == LABELS[int(alone.argmax())] and classified.speaker == utterance.speaker
    assert len({u.prediction for u in scored.result.runs[0]}) > 1, "a constant guess would hide mixed-up batches"


def test_half_precision_agrees(model, manifest):
    full = evaluate_classification(model, manifest, progress=False).result
    half = evaluate_classification(model, manifest, precision="bf16", progress=False).result
    probabilities = [np.array([u.probabilities for u in result.runs[0]]) for result in (full, half)]
    assert 0 < np.abs(probabilities[0] - probabilities[1]).max() < 0.1


@pytest.mark.gpu
def test_on_a_gpu(model, manifest):
    full = evaluate_classification(model, manifest, progress=False).result
    there = evaluate_classification(model.cuda(), manifest, progress=False).result
    ours, theirs = ([u.probabilities for u in result.runs[0]] for result in (full, there))
    assert np.array(ours) == pytest.approx(np.array(theirs), abs=1e-3)


def test_what_cannot_be_evaluated_is_said_before_the_work(model, manifest):
    strange = manifest.map(lambda u: Utterance(u.id, u.audio_filepath, u.duration, emotion="odd"))
    with pytest.raises(InputError, match="label 'odd' is unknown; the classes are high, low, middle"):
        evaluate_classification(model, strange, progress=False)
    with pytest.raises(InputError, match="the only label is 'high', of 12 utterances"):
        evaluate_classification(model, manifest, label_field="pitch", progress=False)
    with pytest.raises(ManifestError, match="lacks 'label'"):
        evaluate_classification(model, manifest, label_field="label", progress=False)
    torch.nn.init.constant_(model.head.linear.bias, float("nan"))
    with pytest.raises(CheckpointError, match="output for 'u.*' is not finite"):
        evaluate_classification(model, manifest, progress=False)
    model.add_head("frames", MeanHead(flat=False))
    with pytest.raises(ConfigError, match="expected \\(3,\\), a probability per label"):
        evaluate_classification(model, manifest, progress=False)
    model.set_head(None)
    with pytest.raises(ConfigError, match="the active head has no labels"):
        evaluate_classification(model, manifest, progress=False)


@pytest.mark.slow
def test_real_speech_with_a_linear_probe(real_data):
    """The evaluator gives the predictions of the probe that its head was filled with, far above chance."""
    from sklearn.linear_model import LogisticRegression

    read = (Manifest.read(real_data / "manifests" / f"ser_emodb_{split}.jsonl") for split in ("train", "test"))
    short = (manifest.filter(lambda utterance: utterance.duration < 2.5) for manifest in read)
    train, test = (manifest.subset(size=size) for manifest, size in zip(short, (90, 40), strict=True))
    model = SpeechAdapterModel.from_pretrained("tiny-wavlm")
    means = []
    for manifest in (train, test):
        rows = np.zeros((len(manifest), model.feature_size))
        for batch in evaluation_loader(SpeechDataset(manifest), 60.0):
            with torch.no_grad():
                output = model(batch["waveforms"], batch["lengths"])
            for index, features, frames in zip(batch["indices"], output.features, output.frame_lengths, strict=True):
                rows[index] = features[:frames].mean(0)
        means.append(rows)
    probe = LogisticRegression(max_iter=2000).fit(means[0], [u.emotion for u in train])
    model.add_head("emotion", MeanHead(labels=tuple(probe.classes_)))
    with torch.no_grad():
        model.head.linear.weight.copy_(torch.from_numpy(probe.coef_))
        model.head.linear.bias.copy_(torch.from_numpy(probe.intercept_))
    result = evaluate_classification(model, test, batch_seconds=60.0, progress=False).result
    assert [u.prediction for u in result.runs[0]] == probe.predict(means[1]).tolist()
    assert result.ua.value > 2 / 7 and result.ua.resampled == "speaker"


# Files of predictions


@pytest.fixture
def result() -> ClassificationResult:
    rng = np.random.default_rng(1)
    probabilities = rng.dirichlet((1, 1, 1), 30).round(6)
    predictions, speakers = [LABELS[i] for i in probabilities.argmax(1)], [f"s{i % 5}" for i in range(30)]
    return score_classification(
        rng.choice(LABELS, 30).tolist(), predictions, speakers, [f"u{i}" for i in range(30)], labels=LABELS,
        probabilities=probabilities.tolist(),
    )  # fmt: skip


def test_predictions_come_back_as_they_were(result, tmp_path):
    write_predictions(tmp_path / "p.jsonl", result)
    assert read_predictions(tmp_path / "p.jsonl") == result
    twice = ClassificationResult.combine([result, result])
    write_predictions(tmp_path / "twice.jsonl", twice)
    again = read_predictions(tmp_path / "twice.jsonl")
    assert len(again.runs) == 2 and again.to_dict() == twice.to_dict()


def test_a_table_is_read_too(result, tmp_path):
    with (tmp_path / "p.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["speaker", "id", "prediction", "label", "remark"])
        rows.writerows([u.speaker, u.id, u.prediction, u.label, "x"] for u in result.runs[0])
    table = read_predictions(tmp_path / "p.csv")
    assert (table.ua, table.macro_f1) == (result.ua, result.macro_f1)
    assert table.runs[0][0].probabilities is None and table.probability(table.runs[0][0], "high") is None


GOOD = '{"id": "a", "label": "x", "prediction": "x"}\n'


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("p.jsonl", "", "p.jsonl: no predictions in it"),
        ("p.jsonl", GOOD + "{", "p.jsonl:2: not JSON"),
        ("p.jsonl", GOOD + "[1]", "p.jsonl:2: expected a JSON object with id, label, prediction"),
        ("p.jsonl", GOOD + '{"id": "b", "label": "y"}', "p.jsonl:2: prediction is None, expected text"),
        ("p.jsonl", GOOD + '{"id": "b", "label": 1, "prediction": "x"}', "p.jsonl:2: label is 1, expected text"),
        ("p.jsonl", GOOD + GOOD, "p.jsonl: ids: 'a' is repeated"),
        ("p.jsonl", GOOD, "p.jsonl: the only label is 'x', of 1 utterance"),
        ("p.jsonl", GOOD + GOOD[:-2] + ', "probabilities": {"x": 1}}', "p.jsonl:2: the probabilities are not of"),
        ("p.jsonl", GOOD[:-2] + ', "probabilities": {"x": "1"}}', "p.jsonl:1: the probability of 'x' is '1'"),
        ("p.csv", "id,label\na,x\n", "p.csv:1: no column 'prediction'; there are id, label"),
        ("p.csv", "id,label,prediction\na,x\n", "p.csv:2: prediction is None"),
    ],
)
def test_bad_files_are_named(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message):
        read_predictions(tmp_path / name)
    with pytest.raises(InputError, match="none.csv: the predictions cannot be read .*check the path"):
        read_predictions(tmp_path / "none.csv")


# The report


def test_report_shows_the_matrix_and_the_mistakes(result, manifest, tmp_path):
    mistakes = confident_mistakes(result, manifest, count=3)
    assert all(Path(entry["audio_filepath"]).exists() for entry in mistakes) and "%)" in mistakes[0]["reference"]
    values = {"task": "emotion", "adapter": "el", "metrics": result.to_dict()}
    values["baselines"] = {"head-only": {"metrics": result.to_dict()}}
    (tmp_path / "results.json").write_text(json.dumps(values))
    (tmp_path / "worst.json").write_text(json.dumps(mistakes))
    page = write_report(tmp_path).read_text()
    Page(page)  # tags nest
    assert page.count('aria-label="Confusion matrix of') == 2 and "macro F1 %" in page
    count = int(result.confusion[0, 1])
    assert f"high taken for low: {count} of {result.per_class['high'].support}" in page
    assert page.count("<audio") == len(mistakes) > 0


def test_matrix_of_a_class_without_utterances():
    table = confusion_table(Confusion(["a", "b"], [[3, 1], [0, 0]]))
    assert [(cell.text, cell.small, cell.share) for cell in table.rows[0][1:]] == [
        ("75 %", "3", 0.75),
        ("25 %", "1", 0.25),
    ]
    assert [(cell.text, cell.share) for cell in table.rows[1][1:]] == [("", 0.0), ("", 0.0)]
    with pytest.raises(ValueError, match="2 classes"):
        Confusion(["a", "b"], [[3, 1]])


# The recipe


@pytest.fixture(scope="module")
def recipe():
    return load_script("recipes/evaluate_emotion.py")


def call(recipe, *arguments: str) -> None:
    recipe.main(parse_cli(recipe.Config, list(arguments)))


def test_recipe_scores_a_saved_model(recipe, model, manifest, tmp_path, capsys):
    stock_model("wavlm", "pre-norm").save_pretrained(tmp_path / "encoder")
    (tmp_path / "encoder" / "preprocessor_config.json").write_text('{"do_normalize": true}')
    model.add_adapter("a", "l")
    model.delete_head("emotion")
    model.add_head("emotion", MeanHead())
    model.save_adapter("a", tmp_path / "a")
    model.save_head("emotion", tmp_path / "head")
    folders = [
        f"--{part}={tmp_path / name}" for part, name in (("encoder", "encoder"), ("adapter", "a"), ("head", "head"))
    ]
    call(recipe, *folders, f"--manifest={manifest.name}", f"--output={tmp_path / 'run'}", "--device=cpu")
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    expected = evaluate_classification(model, manifest, progress=False).result
    assert results["metrics"] == json.loads(json.dumps(expected.to_dict()))
    assert (
        results["adapter"] == "a" and results["parameters"]["total"] > 0 and results["data"]["test"]["speakers"] == 3
    )
    assert f"UA {expected.ua.percent()}" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "run" / "worst.json").read_text())) == len(expected.mistakes())
    own = read_predictions(tmp_path / "run" / "predictions.jsonl")
    assert own.to_dict() == expected.to_dict()


def test_recipe_scores_a_file_of_predictions(recipe, result, manifest, tmp_path):
    write_predictions(tmp_path / "theirs.jsonl", result)
    theirs = f"--predictions={tmp_path / 'theirs.jsonl'}"
    call(recipe, theirs, f"--output={tmp_path / 'run'}")
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["metrics"] == json.loads(json.dumps(result.to_dict()))
    assert read_predictions(tmp_path / "run" / "predictions.jsonl") == result
    assert "Confusion matrix of" in (tmp_path / "run" / "report.html").read_text()
    right = score_classification(*[[u.emotion for u in manifest]] * 2, ids=[u.id for u in manifest])
    write_predictions(tmp_path / "right.jsonl", right)
    call(
        recipe,
        f"--predictions={tmp_path / 'right.jsonl'}",
        f"--manifest={manifest.name}",
        f"--output={tmp_path / 'b'}",
    )
    assert json.loads((tmp_path / "b" / "results.json").read_text())["metrics"]["ua"]["value"] == 1.0
    lines = (tmp_path / "right.jsonl").read_text().splitlines(keepends=True)
    for text, message in (
        ("".join(lines[1:]), "lacks 1 utterance of .*test.jsonl, such as 'u0'"),
        ("".join(lines).replace("u0", "v0"), "'v0' is not in .*, neither as an id"),
        ("".join(lines).replace('"label": "low"', '"label": "high"'), "'u0', labelled 'high', has the label 'low' in"),
    ):
        (tmp_path / "bad.jsonl").write_text(text)
        with pytest.raises(InputError, match=message):
            call(recipe, f"--predictions={tmp_path / 'bad.jsonl'}", f"--manifest={manifest.name}")


def test_recipe_asks_for_what_it_needs(recipe, tmp_path):
    (tmp_path / "test.jsonl").touch()
    with pytest.raises(ConfigError, match="give --adapter or --head, and --manifest"):
        call(recipe, f"--manifest={tmp_path / 'test.jsonl'}")
    with pytest.raises(ConfigError, match="give --predictions, or --head and --adapter"):
        call(recipe, f"--predictions={tmp_path / 'test.jsonl'}", "--head=h")


@pytest.mark.slow
def test_recipe_on_its_command_line(tmp_path):
    done = subprocess.run(
        [sys.executable, "recipes/evaluate_emotion.py", f"--predictions={tmp_path / 'none.csv'}"],
        cwd=ROOT, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 2 and "none.csv: no such file; check --predictions" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_corpus_of_one_class_is_named_with_its_key(tmp_path):
    lines = [Utterance(f"u{n}", tmp_path / f"u{n}.wav", 1.0, speaker=f"s{n}", emotion="calm") for n in range(2)]
    train, test = (
        Manifest([line], name=name) for line, name in zip(lines, ("train.jsonl", "test.jsonl"), strict=True)
    )
    with pytest.raises(ManifestError, match="train.jsonl: emotion is 'calm' in every utterance"):
        Classification().head(Corpus(train, None, test, "calm"))
