"""Others' files: trial lists, scores and predictions as tables, with columns and orders of their own."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from speech_adapters.data import predictions, score_files, trials
from speech_adapters.data.manifest import Manifest, Utterance
from speech_adapters.data.predictions import read_predictions
from speech_adapters.data.records import said_columns
from speech_adapters.data.score_files import read_scores, write_scores
from speech_adapters.data.trials import Trial, UtteranceIndex, read_trials
from speech_adapters.errors import InputError
from speech_adapters.metrics.verification import verification_result

TRIALS = [Trial(1, "a.wav", "b.wav"), Trial(0, "a.wav", "c d.wav")]


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("name", "text", "columns"),
    [
        ("t.csv", "label,enrol,test\n1,a.wav,b.wav\n0,a.wav,c d.wav\n", {}),
        ("t.csv", "path1;path2;target\na.wav;b.wav;target\na.wav;c d.wav;nontarget\n", {}),
        ("t.tsv", "remark\tfile1\tfile2\tsame\nx\ta.wav\tb.wav\tTrue\ny\ta.wav\tc d.wav\tFalse\n", {}),
        ("t.csv", "x,y,z\na.wav,b.wav,1\na.wav,c d.wav,0\n", {"enrol": "x", "test": "y", "label": "z"}),
        ("t.csv", "a.wav,b.wav,1\na.wav,c d.wav,0\n", {"enrol": "1", "test": "2", "label": "3"}),
        (
            "t.jsonl",
            '{"label": 1, "enrol": "a.wav", "test": "b.wav"}\n{"test": "c d.wav", "label": 0, "enrol": "a.wav"}\n',
            {},
        ),
        ("t.txt", "a.wav\tb.wav\ttarget\na.wav\tc d.wav\tnontarget\n", {}),
        ("t.txt", "1\ta.wav\tb.wav\n0\ta.wav\tc d.wav\n", {}),
    ],
)
def test_trial_lists(name, text, columns, tmp_path):
    assert list(read_trials(write(tmp_path / name, text), columns=columns)) == TRIALS


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.csv", "enrol,test\na,b\n", "t.csv:1: no column 'label'; there are enrol, test: rename the one it is"),
        ("t.csv", "utt1,file1,test,label\n1,2,3,4\n", "t.csv:1: 'utt1' and 'file1' could both be enrol"),
        ("t.csv", "label,enrol,enrol,test\n1,a,b,c\n", "t.csv:1: two columns are called 'enrol'; rename"),
        ("t.csv", "label,enrol,test\n1,a,b\n0,a\n", "t.csv:3: test is None; each trial needs it"),
        ("t.csv", "label,enrol,test\n1,a,b,c\n", "t.csv:2: 4 cells, and 3 columns"),
        ("t.csv", "label,enrol,test\nyes,a,b\n", "t.csv:2: label 'yes'; expected 1 or target"),
        ("t.jsonl", '{"label": 1, "enrol": "a"}\n', "t.jsonl:1: test is None"),
        ("t.csv", "", "t.csv:1: no column 'label'"),
    ],
)  # fmt: skip
def test_tables_that_are_no_trial_lists(name, text, message, tmp_path):
    with pytest.raises(InputError, match=message):
        read_trials(write(tmp_path / name, text))


@pytest.mark.parametrize(
    ("name", "text", "columns"),
    [
        ("s.csv", "test,enrol,score,label\nc d.wav,a.wav,-1.5,0\nb.wav,a.wav,2,1\nz,z,9,1\n", {}),
        ("s.tsv", "file1\tfile2\tllr\na.wav\tb.wav\t2\na.wav\tc d.wav\t-1.5\n", {}),
        ("s.csv", "l,r,s\na.wav,b.wav,2\na.wav,c d.wav,-1.5\n", {"enrol": "l", "test": "r", "score": "s"}),
        ("s.jsonl", '{"id1": "a.wav", "id2": "b.wav", "llr": 2}\n{"id1": "a.wav", "id2": "c d.wav", "llr": -1.5}', {}),
        ("s.txt", "a.wav\tc d.wav\t-1.5\na.wav\tb.wav\t2\n", {}),
    ],
)  # fmt: skip
def test_score_files(name, text, columns, tmp_path):
    listed = read_trials(write(tmp_path / "t.tsv", "label\tenrol\ttest\n1\ta.wav\tb.wav\n0\ta.wav\tc d.wav\n"))
    scores = read_scores(write(tmp_path / name, text), listed, columns)
    assert scores.tolist() == [2, -1.5]
    write_scores(tmp_path / "again.txt", listed, scores)
    assert read_scores(tmp_path / "again.txt", listed).tolist() == [2, -1.5]


def test_a_table_without_scores(tmp_path):
    listed = read_trials(write(tmp_path / "t.txt", "1 a b\n0 a c\n"))
    with pytest.raises(InputError, match="s.csv:1: no column 'score'; there are enrol, test"):
        read_scores(write(tmp_path / "s.csv", "enrol,test\na,b\n"), listed)
    with pytest.raises(
        InputError, match="no column 'test' or 'score'; .*: --columns test=COLUMN,score=COLUMN says which they"
    ):
        read_scores(write(tmp_path / "s.csv", "enrol,wert\na,b\n"), listed, {})
    with pytest.raises(InputError, match="s.csv:2: 2 columns, expected 3"):
        read_scores(write(tmp_path / "s.csv", "enrol,test,score\na,b,\n"), listed)


@pytest.mark.parametrize(
    ("name", "text", "columns"),
    [
        ("p.csv", "filename,truth,predicted\nx/a.wav,sad,angry\nx/b.wav,angry,angry\n", {}),
        ("p.tsv", "path\tlabel\tprediction\ta.wav\nx/a.wav\tsad\tangry\t1\nx/b.wav\tangry\tangry\t2\n", {}),
        ("p.csv", "c,l,p\na,sad,angry\nb,angry,angry\n", {"id": "c", "label": "l", "prediction": "p"}),
        ("p.jsonl", '{"file": "x/a.wav", "emotion": "sad", "pred": "angry"}\n'
         '{"file": "b", "emotion": "angry", "pred": "angry"}\n', {}),
    ],
)  # fmt: skip
def test_predictions_of_others(name, text, columns, tmp_path):
    known = Manifest(Utterance(i, Path(f"/data/x/{i}.wav"), 1.0, emotion="sad") for i in "ab")
    path = write(tmp_path / name, text)
    result = read_predictions(path, columns=columns, index=UtteranceIndex.of_manifest(known))
    assert [(u.id, u.label, u.prediction) for u in result.runs[0]] == [("a", "sad", "angry"), ("b", "angry", "angry")]


def test_predictions_of_utterances_that_are_not_there(tmp_path):
    known = Manifest([Utterance("a", Path("/data/x/a.wav"), 1.0, emotion="sad")], "test.jsonl")
    path = write(tmp_path / "p.csv", "id,label,prediction\na,sad,sad\nq.wav,angry,sad\n")
    with pytest.raises(InputError, match="p.csv:3: utterance 'q.wav' is not in test.jsonl, neither as an id"):
        read_predictions(path, index=UtteranceIndex.of_manifest(known))


def test_classes_that_differ_in_case_only_are_named(tmp_path):
    path = write(tmp_path / "p.csv", "id,label,prediction\na,Happy,happy\nb,sad,sad\n")
    with pytest.raises(InputError, match="p.csv: the labels 'Happy' and 'happy' differ in case only"):
        read_predictions(path)


def test_reversed_scores_are_asked_about():
    result = verification_result(np.array([0.0, 1, 2, 3]), np.array([1, 1, 0, 0]), draws=5)
    assert "are the scores reversed?" in str(result)


@pytest.mark.parametrize("pair", ["file", "id=", "=file", "ids=file"])
def test_what_columns_are_said(pair):
    with pytest.raises(InputError, match="write id=COLUMN, the keys are id, label"):
        said_columns([pair], predictions.COLUMNS)
    assert said_columns(["enrol=a", " score = b "], trials.COLUMNS, score_files.COLUMNS) == {
        "enrol": "a",
        "score": "b",
    }


def test_the_recipe_takes_them(tmp_path):
    import subprocess
    import sys

    write(tmp_path / "trials.csv", "left file,right file,verdict\na 1.wav,b 1.wav,target\na 1.wav,c.wav,nontarget\n")
    write(tmp_path / "scores.csv", "left file,right file,llr\na 1.wav,b 1.wav,-3\na 1.wav,c.wav,2\n")
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, root / "recipes" / "evaluate_verification.py", "--trials", "trials.csv",
         "--scores", "scores.csv", "--columns", "enrol=left file,test=right file,label=verdict",
         "--output", "run", "--draws", "5"],
        cwd=tmp_path, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "are the scores reversed?" in done.stdout
    assert json.loads((tmp_path / "run" / "results.json").read_text())["metrics"]["eer"]["value"] == 1


def test_rows_of_separators_alone_are_none(tmp_path):
    table = write(tmp_path / "p.csv", "id;label;prediction\n;;\na;x;x\nb;y;x\n;;;;\n")
    assert [u.id for u in read_predictions(table).runs[0]] == ["a", "b"]


def test_who_cannot_name_columns_is_not_sent_there(tmp_path):
    table = write(tmp_path / "t.csv", "Same speaker;File 1;File 2\n1;a;b\n0;a;c\n")
    with pytest.raises(
        InputError, match="no column 'label', 'enrol' or 'test'; there are Same speaker, File 1, .*: rename those"
    ):
        read_trials(table)
    with pytest.raises(InputError, match="--columns label=COLUMN,enrol=COLUMN,test=COLUMN says which they are"):
        read_trials(table, columns={})
