"""ONNX graphs compute what the model does at lengths they were not traced with, and adapters are switched on them."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch
from small_encoders import conformer_model, whisper_model
from small_models import METHODS, shake, small_model

from speech_adapters.adapters import LoRA
from speech_adapters.composition import Parallel
from speech_adapters.encoders import Encoder
from speech_adapters.errors import CheckpointError, ConfigError
from speech_adapters.heads import ClassificationHead, CTCHead, SpeakerHead
from speech_adapters.model import SpeechAdapterModel
from speech_adapters.saving.onnx_graph import tokens_text
from speech_adapters.text import Vocabulary

onnx = pytest.importorskip("onnx", reason="needs the extra onnx")
pytest.importorskip("onnxscript", reason="needs the extra onnx")
ort = pytest.importorskip("onnxruntime", reason="needs the extra onnx")

#: (samples, ...) of batches that no graph was traced with, one utterance among them.
BATCHES = ((4_321,), (7_000, 12_345, 20_011), (16_000, 9_999))


def speech(lengths) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise (B, samples) at no particular level, zero behind each length, and the lengths."""
    generator = torch.Generator().manual_seed(sum(lengths))
    waveforms = 0.3 * torch.randn(len(lengths), max(lengths), generator=generator) + 0.01
    for row, length in zip(waveforms, lengths, strict=True):
        row[length:] = 0
    return waveforms, torch.tensor(lengths)


def session(path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3  # else each slot is warned of: its value may change
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def run(opened, waveforms, lengths=None, adapter=None) -> dict[str, np.ndarray]:
    options = ort.RunOptions()
    if adapter is not None:
        loaded = ort.LoraAdapter()
        loaded.Load(str(adapter))
        options.add_active_adapter(loaded)
    inputs = {"waveforms": waveforms.numpy()} | ({} if lengths is None else {"lengths": lengths.numpy()})
    names = [output.name for output in opened.get_outputs()]
    return dict(zip(names, opened.run(None, inputs, options), strict=True))


@torch.no_grad()
def check_equal(model: SpeechAdapterModel, opened, adapter=None, batches=BATCHES) -> None:
    """Logits and frames are the model's, in padded batches and alone without lengths."""
    model.eval()
    for each in batches:
        waveforms, lengths = speech(each)
        ours, theirs = model(waveforms, lengths), run(opened, waveforms, lengths, adapter)
        expected = ours.features if ours.logits is None else ours.logits
        found = theirs["features" if ours.logits is None else "logits"]
        assert found.shape == expected.shape
        if "frames" in theirs:
            assert theirs["frames"].tolist() == ours.frame_lengths.tolist()
            for row, (mine, frames) in enumerate(zip(expected, ours.frame_lengths, strict=True)):
                np.testing.assert_allclose(found[row, :frames], mine[:frames].numpy(), atol=1e-4, rtol=1e-4)
        else:
            np.testing.assert_allclose(found, expected.numpy(), atol=1e-4, rtol=1e-4)
        alone = waveforms[:1, : each[0]]
        mine = model(alone)
        mine = mine.features if mine.logits is None else mine.logits
        found = run(opened, alone, None, adapter)["features" if ours.logits is None else "logits"]
        np.testing.assert_allclose(found, mine.numpy(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("family", "style"), [("wavlm", "pre-norm"), ("wav2vec2", "post-norm"), ("hubert", "pre-norm")]
)
def test_two_ranks_and_vocabularies_are_switched_on_one_graph(family, style, tmp_path):
    model = small_model(family, style, layers=2)
    model.add_adapter("a", LoRA(rank=4, alpha=6))
    model.add_head("a", CTCHead())
    model.train_adapter("a", head="a")
    shake(model, 0.1)
    folder = model.save_onnx("a", tmp_path / "graph", head="a", slots=("q_proj", "v_proj", "output_dense"), int8=True)
    opened = session(folder / "model.onnx")
    check_equal(model, opened)

    model.add_adapter("b", LoRA(rank=7, variant="rslora", targets=("v_proj", "output_dense"), layers=(-1,)))
    model.add_head("b", CTCHead(Vocabulary.from_texts(["OTHER WORDS"])))
    model.train_adapter("b", head="b")
    shake(model, 0.1)
    other = model.save_onnx_adapter("b", folder / "b.onnx_adapter", head="b")
    check_equal(model, opened, other)
    assert other.stat().st_size < (folder / "model.onnx").stat().st_size / 4
    assert (folder / "b.tokens.txt").read_text() == tokens_text(model.heads["b"].config.vocabulary)

    model.set_active("a")
    model.set_head("a")
    check_equal(model, opened, batches=BATCHES[:1])  # the graph's own, as before

    small = session(folder / "model.int8.onnx")
    assert (folder / "model.int8.onnx").stat().st_size < 0.8 * (folder / "model.onnx").stat().st_size
    waveforms, lengths = speech(BATCHES[1])
    for adapter in (None, other):
        exact, rounded = (run(graph, waveforms, lengths, adapter)["logits"] for graph in (opened, small))
        assert np.abs(exact - rounded).max() > 0 and np.corrcoef(exact.ravel(), rounded.ravel())[0, 1] > 0.98


def test_without_an_adapter_the_slots_are_zero_and_the_graph_is_the_base(tmp_path):
    model = small_model("wavlm", "post-norm", layers=1)
    drawn = torch.get_rng_state()
    folder = model.save_onnx(None, tmp_path / "graph", slots=("q_proj",))
    assert torch.equal(torch.get_rng_state(), drawn)  # of a training that goes on
    opened = session(folder / "model.onnx")
    check_equal(model, opened, batches=BATCHES[:2])
    model.add_adapter("a", LoRA(rank=2, targets=("q_proj",)))
    model.train_adapter("a")
    shake(model, 0.1)
    check_equal(model, opened, model.save_onnx_adapter("a", folder / "a.onnx_adapter"), BATCHES[:2])


@pytest.mark.parametrize(
    ("method", "head"),
    [
        ("elp", CTCHead(hidden_size=8, kernel_size=5)),
        ("lora+l", ClassificationHead(labels=("a", "b"), pooling="attentive")),
        ("prefix", SpeakerHead(("a", "b"), embedding_size=12)),
    ],
)
def test_other_adapters_and_heads_are_fixed_in_the_graph(method, head, tmp_path):
    model = small_model("hubert", "pre-norm", layers=2)
    model.add_adapter("a", METHODS[method])
    model.add_head("a", head)
    model.train_adapter("a", head="a")
    shake(model, 0.05)
    folder = model.save_onnx("a", tmp_path / "graph", head="a")
    opened = session(folder / "model.onnx")
    check_equal(model, opened)
    if isinstance(head, ClassificationHead):
        assert (folder / "labels.txt").read_text() == "a\nb\n"
    if isinstance(head, SpeakerHead):
        waveforms, lengths = speech(BATCHES[1])
        with torch.no_grad():
            expected = model(waveforms, lengths).embedding
        np.testing.assert_allclose(run(opened, waveforms, lengths)["embedding"], expected, atol=1e-4, rtol=1e-4)


def test_whisper_hears_the_same_through_its_spectrogram(tmp_path):
    model = SpeechAdapterModel(Encoder(whisper_model(1), "small", normalize=False))
    model.add_adapter("a", LoRA(rank=2))
    model.add_head("a", CTCHead())
    model.train_adapter("a", head="a")
    shake(model, 0.1)
    folder = model.save_onnx("a", tmp_path / "graph", head="a")
    opened = session(folder / "model.onnx")
    check_equal(model, opened)
    assert json.loads((folder / "graph.json").read_text())["max_samples"] == model.encoder.max_samples
    operations = {node.op_type for node in onnx.load(folder / "model.onnx").graph.node}
    assert "MatMul" in operations and "STFT" not in operations, "slow, and off by 4e-3 in the logits of real speech"


def test_w2v_bert_is_refused_with_torch_s_reason(tmp_path):
    model = SpeechAdapterModel(Encoder(conformer_model(1), "small-conformer", normalize=False))
    with pytest.raises(ConfigError, match="small-conformer: torch.export makes no graph of free length"):
        model.save_onnx(None, tmp_path / "graph")
    assert not list(tmp_path.iterdir())


def test_sherpa_onnx_hears_the_same_symbols(tmp_path):
    sherpa = pytest.importorskip("sherpa_onnx", reason="needs sherpa-onnx (extra dev)")
    model = small_model("wav2vec2", "pre-norm", layers=1)
    model.add_adapter("a", LoRA(rank=2))
    model.add_head("a", CTCHead())
    model.train_adapter("a", head="a")
    shake(model, 0.5)
    folder = model.save_onnx("a", tmp_path / "graph", head="a", int8=True)
    waveforms, _ = speech((20_000,))
    with torch.no_grad():
        best = model(waveforms).logits[0].argmax(-1)
    tokens = dict(reversed(line.rsplit(" ", 1)) for line in (folder / "tokens.txt").read_text().splitlines())
    expected = [tokens[str(int(i))] for i in torch.unique_consecutive(best) if i != 0]
    assert len(expected) > 5
    recognizer = sherpa.OfflineRecognizer.from_omnilingual_asr_ctc(
        str(folder / "model.onnx"), tokens=str(folder / "tokens.txt"), num_threads=1
    )
    stream = recognizer.create_stream()
    stream.accept_waveform(16_000, waveforms[0].numpy())
    recognizer.decode_stream(stream)
    assert stream.result.tokens == [symbol.replace("▁", " ") for symbol in expected]


def test_lists_of_outputs_hold_every_class_and_are_not_written_over(tmp_path):
    model = small_model("wav2vec2", "pre-norm", layers=1)
    model.add_adapter("a", LoRA(rank=2))
    for name, labels in (("fine", ("up", "down")), ("broken", ("up", "a\nb"))):
        model.add_head(name, ClassificationHead(labels=labels))
    with pytest.raises(ConfigError, match=r"label 'a\\nb' is of two lines"):
        model.save_onnx("a", tmp_path / "graph", head="broken")
    assert not list(tmp_path.iterdir())
    folder = model.save_onnx("a", tmp_path / "graph", head="fine")
    assert (folder / "labels.txt").read_text() == "up\ndown\n"
    with pytest.raises(ConfigError, match="is of two lines"):
        model.save_onnx_adapter("a", folder / "b.onnx_adapter", head="broken")
    assert not list(folder.glob("b.*"))
    (folder / "b.labels.txt").write_text("mine")
    with pytest.raises(ConfigError, match="b.labels.txt: exists already; choose another name"):
        model.save_onnx_adapter("a", folder / "b.onnx_adapter", head="fine")
    assert (folder / "b.labels.txt").read_text() == "mine"


def test_what_has_no_graph_is_refused_with_the_reason(tmp_path):
    model = small_model("hubert", "post-norm", layers=1)
    model.add_adapter("a", LoRA(rank=2))
    model.add_adapter("b", "houlsby")
    model.add_head("head", CTCHead())
    for words, name, options in (
        ("is not a projection; choose from q_proj", "a", {"slots": ("query",)}),
        (r"changes v_proj of layer 0.*slots=\('q_proj', 'v_proj'\)", "a", {"slots": ("q_proj",)}),
        ("one output; export its branches one by one", Parallel("a", "b"), {}),
    ):
        with pytest.raises(ConfigError, match=words):
            model.save_onnx(name, tmp_path / "graph", head="head", **options)
    model.add_adapter("l", "l-frozen")
    with pytest.raises(ConfigError, match="this head reads features of 64, and the adapter gives 512"):
        model.save_onnx("l", tmp_path / "graph", head="head")
    with pytest.raises(CheckpointError, match="holds no graph.json"):
        model.save_onnx_adapter("a", tmp_path / "a.onnx_adapter", head="head")
    model.encoder.model.half()
    with pytest.raises(ConfigError, match="export from float32 on the CPU, not from torch.float16"):
        model.save_onnx("a", tmp_path / "graph", head="head")
    held = small_model("wav2vec2", "pre-norm", layers=1)
    held.encoder.quantize("int8")
    with pytest.raises(ConfigError, match="held in int8 has no ONNX form; load it without quantize"):
        held.save_onnx(None, tmp_path / "graph")
    assert not list(tmp_path.iterdir())


def test_an_adapter_that_no_graph_takes_is_refused(tmp_path):
    model = small_model("hubert", "post-norm", layers=1)
    model.add_adapter("a", LoRA(rank=2))
    model.add_head("head", CTCHead())
    folder = model.save_onnx("a", tmp_path / "graph", head="head")
    before = sorted(folder.iterdir())
    with pytest.raises(ConfigError, match="exists already"):
        model.save_onnx("a", folder, head="head")
    model.add_adapter("dora", LoRA(rank=2, variant="dora"))
    model.add_adapter("out", LoRA(rank=2, targets=("out_proj",)))
    model.add_head("wide", CTCHead(hidden_size=8))
    model.add_head("class", ClassificationHead(labels=("a", "b")))
    for words, name, head in (
        ("lora fits into no slot, which LoRA", "dora", "head"),
        ("changes out_proj of layer 0, for which the graph has no slot", "out", "head"),
        ("slots for a head with .*a head of type 'ctc'", "a", "wide"),
        ("slots for a head with .*a head of type 'classification'", "a", "class"),
        ("slots for a head with .*this is no head", "a", None),
    ):
        with pytest.raises(ConfigError, match=words):
            model.save_onnx_adapter(name, folder / "x.onnx_adapter", head)
    with pytest.raises(ConfigError, match="name it x.onnx_adapter"):
        model.save_onnx_adapter("a", folder / "x.bin", "head")
    other = small_model("wavlm", "post-norm", layers=1)
    other.add_adapter("a", LoRA(rank=2))
    with pytest.raises(CheckpointError, match="the graph beside it is of 'small-hubert-post-norm'"):
        other.save_onnx_adapter("a", folder / "x.onnx_adapter")
    assert sorted(folder.iterdir()) == before


def test_tokens_are_sherpa_s():
    assert tokens_text(Vocabulary(("<pad>", "|", "A"))) == "<blk> 0\n▁ 1\nA 2\n"
    assert tokens_text(Vocabulary(("A", "[PAD]"), blank="[PAD]", delimiter=None)) == "A 0\n<blk> 1\n"


def test_without_the_packages_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ConfigError, match=r"pip install 'speech-adapters\[onnx\]'"):
        small_model("wavlm", layers=1).save_onnx(None, tmp_path / "graph")
