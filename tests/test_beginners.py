"""What people get wrong on their first day in Python: forty mistakes and more, each of which works because its meaning
is plain, or gets a sentence that says what to do."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_models import TARGETS, batch, small_model

from speech_adapters import (
    AdaLoRA,
    Bottleneck,
    ClassificationHead,
    CTCHead,
    Fuse,
    LoRA,
    SlotsHead,
    SpeakerHead,
    SpeechAdapterModel,
)
from speech_adapters.adapters import preset
from speech_adapters.composition import RouterConfig
from speech_adapters.errors import InputError
from speech_adapters.tasks.asr import evaluate_asr
from speech_adapters.tasks.classification import evaluate_classification
from speech_adapters.tasks.predict import extract_embeddings
from speech_adapters.tasks.verification import evaluate_verification
from speech_adapters.text import Vocabulary
from speech_adapters.training.loop import fit_parts
from speech_adapters.training.settings import TrainingConfig

WAVEFORMS, LENGTHS = batch()
RAGGED = [WAVEFORMS[0], WAVEFORMS[1, :4800]]
LABELS = ("calm", "cross", "sad")


def nan() -> torch.Tensor:
    waveforms = WAVEFORMS.clone()
    waveforms[1, 7] = float("nan")
    return waveforms


def classifier() -> SpeechAdapterModel:
    model = small_model()
    model.add_head("emotion", ClassificationHead(LABELS))
    return model


def saved(folder: Path) -> Path:
    """A saved adapter and its head."""
    model = small_model(method="lora", head=True)
    model.save_head(model.active_head, folder / "head")
    return model.save_adapter("a", folder / "adapter")


#: Mistake -> (what is written, given a model with a CTC head; what is said).
SAID: dict[str, tuple[Callable[[SpeechAdapterModel], Any], str]] = {
    # --- audio
    "a path": (lambda m: m("call.wav"), r"waveforms: got the text 'call.wav'.*read_audio\(path\)"),
    "a list of paths": (lambda m: m(["a.wav", "b.wav"]), r"waveforms: expected utterances, got.*read_audio\(path\)"),
    "a processor's mapping": (lambda m: m({"input_values": WAVEFORMS}), r"mapping with input_values; call model\(\*"),
    "one utterance alone": (lambda m: m(WAVEFORMS[0]), r"got \(6400,\).*one utterance is waveforms\[None\]"),
    "stereo": (lambda m: m(torch.zeros(2, 2, 6400)), r"\(2, 2, 6400\).*pick a channel, or take waveforms.mean\(1\)"),
    "stereo in a list": (lambda m: m([np.zeros((6400, 2), np.float32)]), r"waveforms\[0\].*\(6400, 2\); pick a chann"),
    "int16": (lambda m: m((WAVEFORMS * 1000).short()), r"torch.int16; divide integers by their full scale \(32768"),
    "int16 in a list": (lambda m: m([np.zeros(6400, np.int16)]), r"waveforms\[0\]: torch.int16; divide integers"),
    "int16 as floats": (lambda m: m(WAVEFORMS * 20_000), "amplitudes up to .*expected about .-1, 1.; divide integers"),
    "a NaN": (lambda m: m(nan(), LENGTHS), "utterance 1 of the batch holds NaN or infinite samples"),
    "a division by zero": (lambda m: m(WAVEFORMS / 0), "utterance 0 of the batch holds NaN or infinite samples"),
    "nothing": (lambda m: m(torch.zeros(0, 6400)), "holds no samples; give at least one utterance"),
    "too short": (lambda m: m(torch.zeros(1, 100)), "100 samples is shorter than the encoder's receptive field"),
    "another rate": (lambda m: m(WAVEFORMS, sampling_rate=8000), r"hears 16000 Hz alone; resample .*resample\("),
    "another device": (lambda m: m(WAVEFORMS.to("meta")), r"they are on meta, the model is on cpu; use waveforms.to"),
    "a misspelt argument": (lambda m: m(WAVEFORMS, length=LENGTHS), "unknown argument 'length'; did you mean 'length"),
    # --- adapters, trainings and test sets
    "a list of adapters": (lambda m: m.set_active(["a", "b"]), r"neither an adapter's name nor.*set_active\('a'"),
    "an average without weights": (lambda m: m.average_adapters("c", ["a"]), "average: .'a'. has no weights; give"),
    "a run's name": (lambda m: fit_parts(m, TrainingConfig(), "runs/a", "x"), r"'runs/a' is not a run.*Folder.create"),
    "a test set's path": (lambda m: evaluate_asr(m, "test.jsonl"), r"'test.jsonl' is not one.*Manifest.read"),
    "a path to hear": (lambda m: extract_embeddings(m, "test.jsonl"), "'test.jsonl' is not one; read it first"),
    "a path of classes": (lambda m: evaluate_classification(classifier(), "t.jsonl"), "'t.jsonl' is not one"),
    "a path beside trials": (lambda m: evaluate_verification(m, None, "t.jsonl"), "'t.jsonl' is not one"),
    # --- lengths
    "lengths as fractions": (lambda m: m(WAVEFORMS, LENGTHS / 6400), r"of fractions take \(lengths \* 6400\).round"),
    "lengths of another batch": (lambda m: m(WAVEFORMS, [6400]), r"expected 2 numbers of samples.*got \[6400\]"),
    "lengths in seconds": (lambda m: m(WAVEFORMS, torch.tensor([1, 1])), "an utterance of 1 samples is shorter"),
    "padding on the left": (lambda m: m(WAVEFORMS, attention_mask=torch.tensor([[0, 1], [1, 1]])), "padding behind"),
    # --- targets
    "a forgotten head": (lambda m: (m.set_head(None), m(WAVEFORMS, targets=TARGETS)), "no head is active; call set_h"),
    "ids outside the vocabulary": (lambda m: m(WAVEFORMS, targets=[[5, 99], [6, 7]]), "id 99 is none of the head's 3"),
    "targets padded with 0": (lambda m: m(WAVEFORMS, targets=[[5, 6], [7, 0]]), "utterance 1 holds id 0, CTC's blank"),
    "targets as texts": (lambda m: m(WAVEFORMS, targets=["HI", "YOU"]), r"targets: expected .*integers.*got list"),
    "targets as floats": (lambda m: m(WAVEFORMS, targets=TARGETS.float()), r"expected integers \(batch, symbols\)"),
    "one transcript for two": (lambda m: m(WAVEFORMS, targets=[5, 6]), r"integers \(batch, symbols\) for 2 utterance"),
    "an id of -1": (lambda m: m(WAVEFORMS, targets=[[5, -1], [6, 7]]), "id -1 is none of the head's 32 .0 to 31"),
    "targets of another batch": (lambda m: m(WAVEFORMS, labels=TARGETS[:1]), r"for 2 utterances, got \(1, 4\)"),
    "a text as targets": (lambda m: m(WAVEFORMS, labels="hello"), "targets: got the text 'hello', expected a tensor"),
    # --- adapters and heads
    "LoRA(r=16)": (lambda m: LoRA(r=16), "LoRA: unknown setting 'r'; did you mean 'rank'"),
    "target_modules": (lambda m: AdaLoRA(target_modules=["q_proj"]), "'target_modules'; did you mean 'targets'"),
    "a rank without its name": (lambda m: LoRA(16), r"LoRA\(16\): give its settings all by name: learning_rate, targ"),
    "r in a preset": (lambda m: preset("lora", r=16), "unknown setting 'r'; did you mean 'rank'"),
    "a misspelt preset": (lambda m: m.add_adapter("x", "lorra"), "unknown adapter preset 'lorra'. Did you mean 'lora"),
    "a config without brackets": (lambda m: m.add_adapter("x", LoRA), r"not <class .*LoRA'>; write LoRA\(\)"),
    "a config in place of the name": (lambda m: m.add_adapter(LoRA(), "x"), "adapter name LoRA.*: use letters"),
    "a name that is taken": (lambda m: m.add_adapter("a", "lora"), "adapter 'a' exists already"),
    "a learning rate as text": (lambda m: LoRA(learning_rate="1e-4"), "learning_rate='1e-4': must be a number"),
    "a number of classes": (lambda m: ClassificationHead(3), r"labels=3: give the names of all classes"),
    "num_labels": (lambda m: ClassificationHead(num_labels=3), "unknown setting 'num_labels'; did you mean 'labels'"),
    "classes as numbers": (lambda m: ClassificationHead([0, 1, 2]), "labels: 0 is not text; give the classes as"),
    "classes twice by place": (lambda m: SpeakerHead(["a", "b"], 256), r"SpeakerHead\(256\): .*speakers first, the o"),
    "a vocabulary's size": (lambda m: CTCHead(32), r"CTCHead: vocabulary=32: give Vocabulary.from_texts\(transcripts"),
    "a vocab.json's content": (lambda m: CTCHead({"a": 0, "b": 1}), r"vocabulary=.*Vocabulary.load\('vocab.json'\)"),
    "a head without brackets": (lambda m: m.add_head("x", CTCHead), r"not <class .*CTCHead'>; write CTCHead\(...\)"),
    "another kind of fusion's config": (lambda m: m.add_fusion(Fuse("a"), RouterConfig()), "takes a FusionConfig"),
    # --- training
    "training without a head": (lambda m: m.train_adapter("a", head="emotion"), "no head 'emotion'; there are: asr"),
    "an adapter never added": (lambda m: m.train_adapter("b"), "no adapter 'b'; there are: a"),
    "a fusion never added": (lambda m: m.train_fusion("fuse-a-b"), "no fusion 'fuse-a-b'"),
    "epochs": (lambda m: TrainingConfig(epochs=3), "unknown setting 'epochs'; did you mean 'updates'"),
    "lr": (lambda m: TrainingConfig(lr=1e-3), "unknown setting 'lr'; did you mean 'learning_rates'"),
    # --- files
    "a misspelt encoder": (lambda m: SpeechAdapterModel.from_pretrained("tiny-wavlmm"), "Did you mean 'tiny-wavlm'"),
    "a wrong path": (lambda m: m.load_adapter("adapters/no-such"), "no such file; give a folder that holds a saved a"),
}  # fmt: skip

FILES: dict[str, tuple[Callable[[SpeechAdapterModel, Path], Any], str]] = {
    "an adapter as a head": (lambda m, f: m.load_head(f), r"head.json: no such file; give a folder that holds a save"),
    "an adapter as an encoder": (lambda m, f: SpeechAdapterModel.from_pretrained(f), r"a saved adapter, not an enc"),
    "an adapter of a name that is taken": (lambda m, f: (m.load_adapter(f, "b"), m.load_adapter(f, "b")), "'b' exist"),
    "an adapter of another base": (lambda m, f: small_model("hubert").load_adapter(f), "frozen weights are not those"),
}  # fmt: skip

#: What is meant is plain -> (what is written, the same as it is written with tensors).
WORKS: dict[str, tuple[Callable[[SpeechAdapterModel], Any], Callable[[SpeechAdapterModel], Any]]] = {
    "an array": (lambda m: m(WAVEFORMS.numpy(), LENGTHS), lambda m: m(WAVEFORMS, LENGTHS)),
    "an array of doubles": (lambda m: m(WAVEFORMS.double().numpy(), LENGTHS), lambda m: m(WAVEFORMS, LENGTHS)),
    "a list of tensors": (lambda m: m(RAGGED), lambda m: m(WAVEFORMS, LENGTHS)),
    "a list of arrays": (lambda m: m([one.numpy() for one in RAGGED]), lambda m: m(WAVEFORMS, LENGTHS)),
    "a list of lists": (lambda m: m([one.tolist() for one in RAGGED]), lambda m: m(WAVEFORMS, LENGTHS)),
    "lengths as a list": (lambda m: m(WAVEFORMS, [6400, 4800]), lambda m: m(WAVEFORMS, LENGTHS)),
    "lengths as an array": (lambda m: m(WAVEFORMS, np.array([6400, 4800])), lambda m: m(WAVEFORMS, LENGTHS)),
    "a length of one utterance": (lambda m: m(WAVEFORMS[1:], 4800), lambda m: m(WAVEFORMS[1:], LENGTHS[1:])),
    "targets as lists": (
        lambda m: m(WAVEFORMS, LENGTHS, targets=[[5, 6, 7, 8], [9, 9]]),
        lambda m: m(WAVEFORMS, LENGTHS, targets=TARGETS),
    ),
    "targets as an array": (
        lambda m: m(WAVEFORMS, LENGTHS, targets=TARGETS.numpy().astype(np.int32)),
        lambda m: m(WAVEFORMS, LENGTHS, targets=TARGETS),
    ),
}


def test_there_are_forty():
    assert len(SAID) + len(FILES) + len(WORKS) + 4 >= 40


@pytest.fixture(scope="module")
def model() -> SpeechAdapterModel:
    model = small_model(method="lora", head=True)
    assert (model.active_adapters, model.active_head) == (("a",), "asr")
    return model


@pytest.mark.parametrize("mistake", SAID)
def test_a_mistake_gets_its_sentence(model: SpeechAdapterModel, mistake: str):
    make, sentence = SAID[mistake]
    model.set_head("asr")
    with pytest.raises(InputError, match=sentence) as caught:
        make(model)
    assert len(str(caught.value)) < 700


@pytest.mark.parametrize("mistake", FILES)
def test_a_mistake_with_files_gets_its_sentence(tmp_path: Path, mistake: str):
    make, sentence = FILES[mistake]
    with pytest.raises(InputError, match=sentence):
        make(small_model(), saved(tmp_path))


@pytest.mark.parametrize("given", WORKS)
def test_what_is_plain_works(model: SpeechAdapterModel, given: str):
    make, same = WORKS[given]
    model.set_head("asr")
    model.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        one, two = make(model), same(model)
    assert torch.equal(one.logits, two.logits)
    assert one.loss is two.loss is None or torch.equal(one.loss, two.loss)


def test_labels_without_a_column_work():
    model = classifier().eval()
    expected = model(WAVEFORMS, LENGTHS, targets=torch.tensor([[2], [0]])).loss
    for targets in (torch.tensor([2, 0]), [2, 0], np.array([2, 0])):
        assert torch.equal(model(WAVEFORMS, LENGTHS, targets=targets).loss, expected)
    for targets, message in (([[3], [0]], "id 3 is none of the head's 3"), ([[], []], r"got \(2, 0\)")):
        with pytest.raises(InputError, match=message):
            model(WAVEFORMS, LENGTHS, targets=torch.tensor(targets, dtype=torch.long))
    model.add_head("intent", SlotsHead({"action": ("on", "off"), "room": ("hall", "bath")}))
    assert model(WAVEFORMS, LENGTHS, targets=[[1, 0], [0, 1]]).loss.isfinite()


def test_a_batch_without_a_symbol_has_a_loss(model: SpeechAdapterModel):
    model.set_head("asr")
    assert model(WAVEFORMS, LENGTHS, targets=torch.empty(2, 0, dtype=torch.long)).loss.isfinite()


def test_heads_take_their_classes_by_place():
    assert ClassificationHead(["a", "b"]).labels == SpeakerHead(["a", "b"]).speakers == ("a", "b")
    assert CTCHead(Vocabulary.wav2vec2()) == CTCHead(vocabulary=Vocabulary.wav2vec2())


def test_padding_without_lengths_and_transcripts_that_are_too_long_are_warned_of(model: SpeechAdapterModel):
    model.set_head("asr")
    with pytest.warns(
        UserWarning, match="utterance 1 ends in zeros and others do not: is that padding.*give lengths="
    ):
        model(WAVEFORMS)
    long = [[5, 6], [7, 8] * 30]
    with pytest.warns(UserWarning, match="utterance 1 has 15 frames and its transcript needs 60; CTC cannot align it"):
        model(WAVEFORMS, LENGTHS, targets=long)


def test_train_on_frozen_things_is_warned_of():
    model = small_model(method="lora", head=True)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with pytest.warns(UserWarning, match=r"nothing of this model is trainable; call train_adapter\(name, head=...\)"):
        model.train()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.train_adapter("a", head="asr")
        model.train()


def test_configs_copy_and_pickle_as_before():
    import copy
    import dataclasses
    import pickle

    for config in (LoRA(rank=3), Bottleneck(size=4), ClassificationHead(LABELS), TrainingConfig(updates=3)):
        assert pickle.loads(pickle.dumps(config)) == copy.deepcopy(config) == dataclasses.replace(config) == config
