"""Active learning with models: observations, disagreement, and the recipe in both modes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_encoders import small_encoder, stock_model
from small_models import shake, small_model
from test_recipes import run

from speech_adapters.active.experiment import ActiveConfig, LabellingLoop
from speech_adapters.active.loop import LabellingConfig
from speech_adapters.active.pool_predictions import committee_disagreement, dropout_disagreement, observe
from speech_adapters.data.audio import write_audio
from speech_adapters.data.manifest import Manifest, Utterance
from speech_adapters.errors import ConfigError, InputError
from speech_adapters.heads import ClassificationHead, SpeakerHead
from speech_adapters.tasks.downstream import Downstream


@pytest.fixture(scope="module")
def speech(tmp_path_factory) -> Path:
    """Pool and test of tones, of various lengths, whose pitch says the class; and a small encoder."""
    folder, rng = tmp_path_factory.mktemp("speech"), np.random.default_rng(0)
    for split, count in (("pool", 24), ("test", 8)):
        utterances = []
        for i in range(count):
            time = np.arange(int((0.6 + 0.05 * (i % 5)) * 16000)) / 16000
            tone = np.sin(2 * np.pi * (300, 1100)[i % 2] * time) * 0.3 + rng.normal(0, 0.02, len(time))
            path = folder / "audio" / f"{split}{i}.wav"
            path.parent.mkdir(exist_ok=True)
            write_audio(path, torch.tensor(tone, dtype=torch.float32))
            utterances.append(
                Utterance(f"{split}{i}", path, len(time) / 16000, text=("NO", "YES")[i % 2], speaker=f"{split}{i % 4}",
                          emotion=("calm", "angry")[i % 2])
            )  # fmt: skip
        Manifest(utterances, split).write(folder / f"{split}.jsonl")
    stock_model("wavlm", "pre-norm").save_pretrained(folder / "encoder")
    return folder


def model_with(task: str):
    model = small_model("wavlm", "pre-norm", "lora-all", head=task == "asr")
    if task == "emotion":
        model.add_head("emotion", ClassificationHead(labels=("angry", "calm"), network="conv"))
        model.train_adapter("a", head="emotion")
    return shake(model, 0.1)


@pytest.mark.parametrize("task", ["asr", "emotion"])
def test_an_observation_does_not_hang_on_batches_or_order(speech, task):
    pool, model = Manifest.read(speech / "pool.jsonl"), model_with(task)
    whole = observe(model, pool, gradients=True, batch_seconds=60)
    single = observe(model, Manifest(reversed(list(pool))), gradients=True, batch_seconds=1)
    assert whole.guesses == tuple(reversed(single.guesses))
    np.testing.assert_allclose(np.linalg.norm(whole.embeddings, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(whole.embeddings, single.embeddings[::-1], atol=1e-4)
    np.testing.assert_allclose(whole.gradients, single.gradients[::-1], atol=1e-4, rtol=1e-4)
    for name, values in whole.uncertainty.items():
        np.testing.assert_allclose(values, single.uncertainty[name][::-1], atol=1e-4)


def test_classification_gradients_are_those_of_the_last_layer(speech):
    pool, model = Manifest.read(speech / "pool.jsonl")[:2], model_with("emotion")
    from speech_adapters.data.audio import read_audio

    found = observe(model, pool, gradients=True)
    last = model.head.network.classifier[-1]
    last.weight.requires_grad_(True)
    for i, utterance in enumerate(pool):
        logits = model(read_audio(utterance.audio_filepath)[None]).logits
        loss = torch.nn.functional.cross_entropy(logits, logits.argmax(-1))
        (expected,) = torch.autograd.grad(loss, last.weight)
        np.testing.assert_allclose(found.gradients[i], expected.flatten().numpy(), atol=1e-5)


@pytest.mark.parametrize("task", ["asr", "emotion"])
def test_disagreement_of_models(speech, task):
    pool, model = Manifest.read(speech / "pool.jsonl")[:6], model_with(task)
    assert committee_disagreement([model, model], pool).max() < 1e-6
    drawn = torch.get_rng_state()
    found = dropout_disagreement(model, pool, passes=4, dropout=0.5, seed=1)
    assert torch.equal(torch.get_rng_state(), drawn)  # of whoever asks
    assert found.shape == (6,) and (found >= 0).all() and found.max() > 0
    np.testing.assert_array_equal(found, dropout_disagreement(model, pool, passes=4, dropout=0.5, seed=1))
    assert not model.training and not any(m.training for m in model.modules())
    with pytest.raises(ConfigError, match="passes=1"):
        dropout_disagreement(model, pool, passes=1)


def test_without_a_head_embeddings_alone_and_other_heads_are_refused(speech):
    pool, model = Manifest.read(speech / "pool.jsonl")[:3], small_model("hubert")
    found = observe(model, pool)
    assert found.embeddings.shape == (3, model.feature_size) and found.guesses == () and not found.uncertainty
    model.add_head("speaker", SpeakerHead(speakers=("a", "b")))
    with pytest.raises(ConfigError, match="CTC or classification"):
        observe(model, pool)


def test_a_committees_member_is_tried_before_anything_is_labelled():
    config, encoder = ActiveConfig(member="lora", member_options={"rank": 0}), small_encoder("wavlm", "pre-norm")
    config.check_adapters(encoder, ("random", "hybrid"))
    with pytest.raises(ConfigError, match="rank=0"):
        config.check_adapters(encoder, ("random", "committee"))


SMALL = [
    "loop.budget=12", "loop.rounds=3", "loop.initial=0.34", "clusters=3", "task.training.updates=3",
    "task.training.batch_seconds=4", "task.training.trackers=[none]", "task.adapter=lora", "passes=2",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("task", ["asr", "emotion"])
def test_experiment(speech, tmp_path, task):
    out = tmp_path / "run"
    command = [
        "recipes/active_learning.py", "--pool", speech / "pool.jsonl", "--test", speech / "test.jsonl",
        "--encoder", speech / "encoder", "--output", out, "--seeds", "0,1", f"task.task={task}",
        "--strategies", "random,badge,committee" if task == "asr" else "random,hybrid,dropout", *SMALL,
        *([] if task == "asr" else ["task.adapter=head-only", f"task.training.cache={tmp_path / 'cache'}"]),
    ]  # fmt: skip
    printed = run(*command).stdout
    results = json.loads((out / "results.json").read_text())
    assert set(results["baselines"]) == {"random", "committee" if task == "asr" else "dropout"}
    own = results["metrics"]["area"]
    assert own["low"] <= own["value"] <= own["high"] and results["full"]["labels"] == 24
    assert [point["labels"] for point in results["curve"]] == [4, 8, 12]
    assert "minus random" in printed and (out / "curves.html").read_text().count("<polygon") == 3
    # Random strategies of one seed begin alike: the same cold start for all.
    logs = {path.parent.name: [json.loads(line) for line in path.read_text().splitlines()]
            for path in out.glob("loops/*/decisions.jsonl")}  # fmt: skip
    firsts = {name: log[1]["ids"] for name, log in logs.items() if name.endswith("seed0") and "full" not in name}
    assert len({tuple(ids) for ids in firsts.values()}) == 1
    # A killed experiment goes on: cut a log in its middle and run again.
    cut = out / "loops" / "random-seed1" / "decisions.jsonl"
    lines = cut.read_text().splitlines(keepends=True)
    cut.write_text("".join(lines[:5]) + lines[5][:20])
    run(*command)
    assert cut.read_text() == "".join(lines)


@pytest.mark.parametrize(
    ("task", "wrong", "message"),
    [
        ("asr", "?!", "filled.csv: the transcripts of 'pool[0-9]+' have no words"),
        ("asr", "DREI GRÖSSERE", "filled.csv: .*Ö"),
        ("asr", "NO AND YES " * 20, "1 transcripts are longer than their audio allows"),
        ("emotion", "sad", "emotion is 'sad', not one of the head's classes"),
    ],
)
def test_labels_that_cannot_be_learnt_are_refused_while_they_can_be_corrected(speech, tmp_path, task, wrong, message):
    pool, key = Manifest.read(speech / "pool.jsonl"), "text" if task == "asr" else "emotion"
    config = ActiveConfig(task=Downstream(task=task), loop=LabellingConfig(budget=4, initial=1.0, rounds=1))
    config.loop.cold_start = "random"
    encoder = small_encoder("wavlm", "pre-norm")
    loop = LabellingLoop(config, encoder, pool, None, tmp_path, config.loop)
    turn = loop.next_round()
    labels = {u.id: {key: u.get(key)} for u in turn.picks}
    with pytest.raises(InputError, match=message):
        loop.label(labels | {turn.picks[1].id: {key: wrong}}, "filled.csv")
    assert loop.learner.pending == turn
    loop.label(labels, "filled.csv")
    assert [u.get(key) for u in loop.learner.labelled] == [u.get(key) for u in turn.picks]


def test_corrections_come_after_the_training_that_is_owed(speech, tmp_path, monkeypatch):
    config = ActiveConfig(task=Downstream(task="emotion"), loop=LabellingConfig(budget=4, initial=1.0, rounds=1))
    config.loop.cold_start = "random"
    loop = LabellingLoop(
        config, small_encoder("wavlm", "pre-norm"), Manifest.read(speech / "pool.jsonl"), None, tmp_path, config.loop
    )
    labels = {u.id: {"emotion": "calm"} for u in loop.next_round().picks}
    assert loop.label(labels, "filled.csv") is None
    first = next(iter(labels))
    with pytest.raises(InputError, match="emotion is 'sad', not one of the head's classes"):
        loop.label({**labels, first: {"emotion": "sad"}}, "filled.csv")
    monkeypatch.setattr(loop, "train", lambda: loop.learner.report(0.5))  # a checkpoint of it has heard the old labels
    assert loop.label({**labels, first: {"emotion": "angry"}}, "filled.csv") == {first}
    assert [event["event"] for event in loop.learner.events[-3:]] == ["labels", "score", "corrections"]


def test_a_test_set_is_looked_at_before_anything_is_labelled(speech):
    test, encoder = Manifest.read(speech / "test.jsonl"), small_encoder("wavlm", "pre-norm")
    Downstream(task="emotion").check_test(test, encoder, ("angry", "calm", "sad"))
    with pytest.raises(InputError, match="'calm'"):
        Downstream(task="emotion").check_test(test, encoder, ("angry", "sad"))
    Downstream(vocabulary="subwords").check_test(test, encoder)
    with pytest.raises(InputError, match="Ö"):
        Downstream().check_test(test.map(lambda u: replace(u, text="SCHÖN")), encoder)


def test_a_pool_that_holds_the_test_set_is_refused(speech, tmp_path):
    test = tmp_path / "test.jsonl"
    Manifest.read(speech / "pool.jsonl")[:8].map(lambda u: replace(u, speaker=None)).write(test)
    found = run("recipes/active_learning.py", "--pool", speech / "pool.jsonl", "--test", test, expect=2)
    assert "pool.jsonl: shares the audio of 8 utterances with" in found.stderr


@pytest.mark.slow
def test_people_label_round_by_round(speech, tmp_path):
    unlabelled = Manifest.read(speech / "pool.jsonl").map(lambda u: replace(u, emotion=None))
    unlabelled.write(tmp_path / "pool.jsonl")
    out = tmp_path / "run"
    command = [
        "recipes/active_learning.py", "--mode", "sheet", "--pool", tmp_path / "pool.jsonl", "--labels", "angry,calm",
        "--encoder", speech / "encoder", "--output", out, "task.task=emotion", "loop.strategy=entropy", *SMALL,
        "loop.rounds=2",
    ]  # fmt: skip
    truth = {u.id: u.emotion for u in Manifest.read(speech / "pool.jsonl")}
    filled: list[str] = []
    for number in range(2):
        assert ("skipped 1 utterance, not asked again" in run(*command, *filled).stdout) == bool(number)
        if number:  # killed when the picks were drawn, before their sheet was there: the same command writes it
            (out / "round1" / "sheet.html").unlink()
            run(*command, *filled)
            assert (out / "round1" / "sheet.html").exists()
            (out / "round1" / "sheet.csv").write_text("half filled in")
            run(*command)
            assert (out / "round1" / "sheet.csv").read_text() == "half filled in"
        sheet = out / f"round{number}" / "sheet.jsonl"
        rows = [json.loads(line) for line in sheet.read_text().splitlines()]
        assert number == 0 or (rows[0]["guess"] in ("angry", "calm") and len(rows[0]["nearest"]) == 3)
        path = tmp_path / f"filled{number}.jsonl"
        said = {row["id"]: truth[row["id"]] for row in rows}
        if not number:
            skipped = rows[0]["id"]
            said[skipped] = "-"
            path.write_text("".join(json.dumps({"id": name, "emotion": "-"}) + "\n" for name in said))
            assert "filled0.jsonl: no utterance has a label" in run(*command, "--filled", path, expect=2).stderr
        path.write_text("".join(json.dumps({"id": name, "emotion": label}) + "\n" for name, label in said.items()))
        filled = ["--filled", path]
        (out / f"round{number}").rename(tmp_path / f"with-people{number}")  # who labels may have taken it along
    assert "The loop is over" in run(*command, *filled).stdout
    labelled = Manifest.read(out / "labelled.jsonl", ("emotion",))
    assert len(labelled) == 12 and all(u.emotion == truth[u.id] and u.id != skipped for u in labelled)
    over = run(*command, *filled).stdout  # the same command, once more
    assert "filled1.jsonl: taken in before, and nothing in it has changed" in over and "train anew" not in over
    path = tmp_path / "filled0.jsonl"
    path.write_text(path.read_text().replace('"-"', '"calm"'))
    over = run(*command, "--filled", path).stdout
    assert f"corrected {skipped}: - -> calm" in over and "train anew on labelled.jsonl" in over
    corrected = {u.id: u.emotion for u in Manifest.read(out / "labelled.jsonl")}
    assert len(corrected) == 13 and corrected[skipped] == "calm"
    path.write_text("".join(json.dumps({"id": name, "emotion": "calm"}) + "\n" for name in ("pool0", "x")))
    assert "is not in this round" in run(*command, "--filled", path, expect=2).stderr
