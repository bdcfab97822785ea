"""Recognition in any language: German, Chinese, phonemes, subwords; and trainings that start from others."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from small_encoders import stock_model

from speech_adapters.data.audio import write_audio
from speech_adapters.data.manifest import Manifest, Utterance
from speech_adapters.encoders import Encoder, load_encoder
from speech_adapters.errors import ConfigError, InputError
from speech_adapters.heads import CTCHead
from speech_adapters.heads.ctc import CTCHeadModule
from speech_adapters.model import SpeechAdapterModel
from speech_adapters.tasks.asr import SpeechRecognition, evaluate_asr
from speech_adapters.tasks.base import Corpus, ExperimentConfig
from speech_adapters.tasks.classification import Classification
from speech_adapters.tasks.experiment import run_experiment
from speech_adapters.training.settings import TrainingConfig

TEXTS = {
    "german": ["Über den Fluß, schöne Grüße!", "Die Straße ist groß.", "Ärger & Öl"],
    "chinese": ["你好，世界", "世界很大", "你很好"],
    "phonemes": ["HH AH0 L OW1", "W ER1 L D", "AH0 D OW1"],
}


def write_corpus(folder: Path, texts: list[str]) -> dict[str, Path]:
    """Three manifests of noise, an utterance a text and two speakers each."""
    rng = np.random.default_rng(0)
    paths = {}
    for split in ("train", "dev", "test"):
        utterances = []
        for index, text in enumerate(texts * 2):
            path = folder / split / f"{index}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_audio(path, torch.tensor(rng.normal(0, 0.1, 16_000), dtype=torch.float32))
            name = f"{split}{index}"
            utterances.append(
                Utterance(name, path, 1.0, text=text, speaker=f"{split}-{index % 2}", emotion="ab"[index % 2])
            )
        paths[split] = folder / f"{split}.jsonl"
        Manifest(utterances, split).write(paths[split])
    return paths


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("encoder")
    stock_model("hubert", "pre-norm").save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"do_normalize": True}))
    return folder


def settings(encoder: Path, output: Path, **changes) -> ExperimentConfig:
    values = {
        "adapter": "lora",
        "baselines": ("none",),
        "training": TrainingConfig(updates=2, batch_seconds=4, trackers=("none",)),
        **changes,
    }
    return ExperimentConfig(encoder=str(encoder), output=output, **values)


def experiment(encoder: Path, texts: list[str], folder: Path, task: SpeechRecognition, **changes):
    paths = write_corpus(folder / "data", texts)
    config = settings(encoder, folder / "run", **changes)
    return run_experiment("asr", config, task, lambda: [Corpus.given(*paths.values(), require=("text",))])


@pytest.mark.parametrize(
    ("language", "vocabulary", "metric", "note"),
    [
        ("german", "characters", "wer", ""),
        ("german", "subwords", "wer", ""),
        ("chinese", "characters", "cer", "CER is the measure"),
        ("phonemes", "phonemes", "wer", "WER counts wrong symbols"),
    ],
)
def test_a_training_in(language, vocabulary, metric, note, encoder, tmp_path, capsys):
    from transformers import pipeline

    texts = [text.replace("，", "") for text in TEXTS[language]] if language == "chinese" else TEXTS[language]
    normalizer = "none" if language == "phonemes" else "basic"
    task = SpeechRecognition(vocabulary=vocabulary, subwords=40, normalizer=normalizer)
    results = experiment(encoder, texts, tmp_path, task)
    assert next(iter(results.own.metrics)) == metric and f"{metric.upper()} " in capsys.readouterr().out
    notes = json.loads((tmp_path / "run" / "results.json").read_text())["notes"]
    assert notes[0].startswith("vocabulary: ") and any(note in line for line in notes)
    assert (", dropped (6x)" in str(notes)) == (language == "german")

    model = SpeechAdapterModel(load_encoder(encoder))
    model.load_adapter(tmp_path / "run" / "adapters" / "lora", "a")
    model.load_head(tmp_path / "run" / "heads" / "lora", "asr")
    head = model.head
    assert isinstance(head, CTCHeadModule) and head.config.normalizer == normalizer
    with torch.no_grad():  # as after long training: sure of something else in each frame, never of special tokens
        head.linear.weight.normal_()
        head.linear.bias[1:4] = -1e3
    test = Manifest.read(tmp_path / "data" / "test.jsonl")
    heard = evaluate_asr(model, test, progress=False).result
    recognise = pipeline("automatic-speech-recognition", str(model.save_folded("a", tmp_path / "stock", head="asr")))
    sound = {"raw": test[0].waveform().numpy(), "sampling_rate": 16_000}
    assert " ".join(recognise(sound)["text"].split()) == heard.utterances[0].hypothesis != ""


def test_letters_are_not_lost_in_silence(encoder, tmp_path, capsys):
    with pytest.raises(
        InputError, match=r"train.jsonl: the normaliser 'librispeech' would lose letters: Ü -> U .2x., ö -> O"
    ):
        experiment(encoder, TEXTS["german"], tmp_path, SpeechRecognition())
    assert not (tmp_path / "run").exists()
    with pytest.raises(InputError, match="symbols '&' are not among"):
        experiment(encoder, TEXTS["german"], tmp_path, SpeechRecognition(accept_letters="all"))
    table = tmp_path / "own.yaml"
    table.write_text("replace: {'&': UND, ü: ue, Ü: UE, ö: oe, Ö: OE, ä: ae, Ä: AE}\nthen: librispeech\n")
    results = experiment(encoder, TEXTS["german"], tmp_path, SpeechRecognition(normalizer=str(table)))
    assert results.own.metrics["words"] == 24
    trn = next((tmp_path / "run").rglob("ref.trn")).read_text()
    assert "UEBER DEN FLUSS SCHOENE GRUESSE" in trn and "AERGER UND OEL" in trn


def test_a_training_goes_on_from_a_saved_adapter_and_head(encoder, tmp_path, capsys):
    texts = ["AB BA", "CC A"]
    first = tmp_path / "first"
    experiment(encoder, texts, first, SpeechRecognition(vocabulary="characters"), adapter_options={"rank": 3})
    start = {
        "from_adapter": first / "run" / "adapters" / "lora",
        "from_head": str(first / "run" / "heads" / "lora"),
        "rates": {"lora": 1e-30, "head": 1e-30},
    }
    results = experiment(encoder, texts, tmp_path / "on", SpeechRecognition(), baselines=("head-only",), **start)
    said = capsys.readouterr().out
    assert f"adapter starts from {start['from_adapter']} (lora)" in said and "vocabulary: 3 characters" in said
    assert set(results.baselines) == {"head-only"}
    for part in ("adapters", "heads"):
        before, after = (_tensors(f / "run" / part / "lora") for f in (first, tmp_path / "on"))
        assert before.keys() == after.keys()
        for name, tensor in before.items():
            torch.testing.assert_close(tensor, after[name], atol=1e-6, rtol=0)
    own = json.loads((tmp_path / "on" / "run" / "adapters" / "lora" / "adapter.json").read_text())
    assert own["config"]["rank"] == 3


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(next(folder.glob("*_model.safetensors")))


def test_a_training_goes_on_from_the_checkpoints_own_head(tmp_path):
    from transformers import AutoModelForCTC

    own = SpeechAdapterModel(Encoder(stock_model("hubert", "pre-norm"), "small", normalize=True))
    own.add_head("asr", CTCHead())
    checkpoint = own.save_folded(None, tmp_path / "checkpoint", head="asr")
    task = SpeechRecognition(vocabulary="checkpoint", encoder=str(checkpoint))
    rates = {"lora": 1e-30, "head": 1e-30}
    experiment(checkpoint, ["AB BA", "CC A"], tmp_path, task, from_head="checkpoint", rates=rates)
    trained = _tensors(tmp_path / "run" / "heads" / "lora")["linear.weight"]
    theirs = AutoModelForCTC.from_pretrained(checkpoint).lm_head.weight
    torch.testing.assert_close(trained, theirs, atol=1e-6, rtol=0)

    with pytest.raises(ConfigError, match="this head reads features of 64, and adapter .* gives .*--baselines none"):
        experiment(checkpoint, ["AB BA", "CC A"], tmp_path / "elp", task, from_head="checkpoint", adapter="elp")


@pytest.mark.parametrize(
    ("task", "changes", "message"),
    [
        (SpeechRecognition(), {"from_head": "checkpoint"}, "this checkpoint has no CTC head"),
        (
            Classification(),
            {"from_head": "checkpoint"},
            "a checkpoint's head is for recognition, and this task is emotion",
        ),
        (SpeechRecognition(), {"from_adapter": Path("nowhere")}, "nowhere.adapter.json: no such file"),
    ],
)
def test_a_start_that_is_not_there(task, changes, message, encoder, tmp_path):
    with pytest.raises(InputError, match=message):
        experiment(encoder, ["AB BA", "CC A"], tmp_path, task, **changes)
    assert not (tmp_path / "run").exists()


def test_an_adapter_of_another_method_or_with_other_settings(encoder, tmp_path):
    model = SpeechAdapterModel(load_encoder(encoder))
    model.add_adapter("a", "houlsby")
    folder = model.save_adapter("a", tmp_path / "a")
    with pytest.raises(ConfigError, match="method 'bottleneck', and adapter=lora is 'lora'; name a preset"):
        experiment(encoder, ["AB BA", "CC A"], tmp_path, SpeechRecognition(), from_adapter=folder)
    options = {"adapter": "houlsby", "adapter_options": {"size": 4}}
    with pytest.raises(ConfigError, match="keeps the settings it was saved with; leave them out"):
        experiment(encoder, ["AB BA", "CC A"], tmp_path, SpeechRecognition(), from_adapter=folder, **options)


@pytest.mark.parametrize(
    ("vocabulary", "message"),
    [("charakters", "choose wav2vec2, characters, subwords, phonemes, checkpoint, or give a vocab.json"),
     ("checkpoint", "has no vocab.json"), ("nowhere/vocab.json", "no such file")],
)  # fmt: skip
def test_vocabularies_that_are_not_there(vocabulary, message, encoder):
    with pytest.raises(InputError, match=message):
        SpeechRecognition(vocabulary=vocabulary, encoder=str(encoder))


def test_a_vocabulary_file_of_ones_own(tmp_path):
    file = tmp_path / "vocab.json"
    file.write_text(json.dumps({"<pad>": 0, "|": 1, "A": 2, "B": 3}))
    task = SpeechRecognition(vocabulary=str(file))
    assert task.vocabulary is not None and task.vocabulary.tokens == ("<pad>", "|", "A", "B")
