"""What every method promises on every encoder: one check per promise, called with a bench (encoder) and a method.

``docs/generate.py`` writes the list of promises from here.
"""

from __future__ import annotations

import copy
import pickle
import tempfile
from collections.abc import Callable

import torch
from small_encoders import small_encoder
from small_models import METHODS, TARGETS, batch, parameters, shake

from speech_adapters.adapters import Bottleneck
from speech_adapters.heads.ctc import CTCHead
from speech_adapters.model import SpeechAdapterModel

#: Methods whose start is not the frozen encoder itself, and how far from it they may be.
NEAR_START = {
    **dict.fromkeys(("e", "el", "houlsby-speech", "near-zero", "houlsby-2019"), 0.02),
    **dict.fromkeys(("cnn-adapter", "chapter"), 0.05),
}
#: Where the CNN has no norm, whose bias a twin would add, the start is exact.
EXACT_TWINS = ("cnn-adapter", "chapter")
#: Methods that take part in the attention from the first step on.
EXTRA_FRAMES = {
    "elp", "p-append", "p-proj", "p-proj-append", "prompt", "prefix", "prefix-mlp", "deep-prompts", "ipet"
}  # fmt: skip
#: (family, method) -> why the method cannot be on it; a message of ours, a regular expression.
REFUSED = dict.fromkeys(
    (("wav2vec2-bert", "cnn-adapter"), ("wav2vec2-bert", "chapter")), "16 mel bands and has no convolutions"
)
#: Methods that train key biases, which softmax takes out again: their gradient is rounding.
KEY_BIASES = ("full", "last-2", "gradual", "hybrid")


class Bench:
    """Encoders of one family and layer style that many adapters come to and leave, and how they were before."""

    def __init__(self, family: str, style: str) -> None:
        self.family, self.style = family, style
        # In double precision a gradient that is zero by nature shows as 1e-18, not as 1e-9.
        self.double = small_encoder(family, style, layers=2)
        self.double.model.double()
        self.single = small_encoder(family, style, layers=2)
        # A CNN that normalises over time changes with padding whatever adapters do: here it does not.
        self.padding = small_encoder(family, style, layers=2, feat_extract_norm="layer", conv_bias=True)
        for encoder in (self.double, self.single, self.padding):  # trained CNNs have biases in their norms
            torch.manual_seed(4)
            for name, parameter in torch.nn.ModuleList(encoder.cnn_blocks).named_parameters():
                if name.endswith("layer_norm.bias"):
                    torch.nn.init.normal_(parameter, std=0.1)
        self.waveforms, self.lengths = batch()
        with torch.no_grad():
            self.base = SpeechAdapterModel(self.double)(self.waveforms.double(), self.lengths)
            self.single_base = SpeechAdapterModel(self.single)(self.waveforms, self.lengths)
        self.before = {encoder: self.look(encoder) for encoder in (self.double, self.single, self.padding)}

    @staticmethod
    def look(encoder) -> tuple:
        """The encoder's module tree, attributes and weights."""
        tree = {name: id(module) for name, module in encoder.model.named_modules()}
        return tree, set(vars(encoder.model)), {k: v.clone() for k, v in encoder.model.state_dict().items()}

    def model(self, encoder, method: str, head: bool = False) -> SpeechAdapterModel:
        """A model with adapter "a", ready to train."""
        model = SpeechAdapterModel(encoder)
        torch.manual_seed(2)
        model.add_adapter("a", METHODS[method])
        if head:
            model.add_head("asr", CTCHead())
        model.train_adapter("a", head="asr" if head else None)
        if encoder is self.double:
            model.double()
        return model

    def leave(self, encoder, model: SpeechAdapterModel) -> None:
        for name in list(model.adapters):
            model.delete_adapter(name)


def starts_as_promised(bench: Bench, method: str) -> None:
    """At step 0 the output is the frozen encoder's, or as near to it as the method's source says."""
    model = bench.model(bench.double, method).eval()
    with torch.no_grad():
        start, base = model(bench.waveforms.double(), bench.lengths), bench.base
    bench.leave(bench.double, model)
    moved = (start.last_hidden_state - base.last_hidden_state)[base.mask].norm()
    moved = (moved / base.last_hidden_state[base.mask].norm()).item()
    if method in EXTRA_FRAMES:
        assert 1e-4 < moved < 0.6, moved
    elif method in NEAR_START and not (bench.family == "whisper" and method in EXACT_TWINS):
        assert 0 < moved < NEAR_START[method], moved
    else:
        assert moved < (1e-7 if "dora" in method else 1e-12), moved  # DoRA's magnitudes are kept in float32


def is_alive(bench: Bench, method: str) -> None:
    """After two updates every trainable tensor has a gradient beyond rounding."""
    model = bench.model(bench.double, method, head=True)
    _two_updates(model, bench)
    model.check_alive()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    rounding = {name for name, p in trained.items() if p.grad.abs().max() < 1e-15}
    bench.leave(bench.double, model)
    key_bias = f"{bench.double.architecture.names['k_proj']}.bias"
    assert rounding == {name for name in trained if name.endswith(key_bias)}
    assert bool(rounding) == (method in KEY_BIASES and bench.family != "whisper")  # whose keys have no bias


def trains_alone(bench: Bench, method: str) -> None:
    """Training moves the adapter's and the head's tensors, all of them, and not one bit of the base."""
    model = bench.model(bench.single, method, head=True)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    assert {id(p) for p in model.parameters() if p.requires_grad} == {id(p) for p in parameters(model)}
    _two_updates(model, bench)
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    chosen = {id(p) for p in parameters(model)}
    assert moved == {name for name, p in model.named_parameters() if id(p) in chosen}
    bench.leave(bench.single, model)
    _same_weights(bench, bench.single)


def saves_and_loads(bench: Bench, method: str) -> None:
    """A saved adapter, loaded under another name, gives the same output to the last bit."""
    model = shake(bench.model(bench.single, method))
    expected = _features(model, bench)
    with tempfile.TemporaryDirectory() as folder:
        model.save_adapter("a", f"{folder}/a")
        model.delete_adapter("a")
        assert model.load_adapter(f"{folder}/a", name="b") == "b"
        found = _features(model, bench)
    bench.leave(bench.single, model)
    assert torch.equal(found, expected)


def switches_off(bench: Bench, method: str) -> None:
    """With no adapter active the output is the frozen base's, to the last bit."""
    model = shake(bench.model(bench.single, method))
    changed = _features(model, bench)
    model.set_active()
    found = _features(model, bench)
    bench.leave(bench.single, model)
    assert torch.equal(found, bench.single_base.features)
    assert method == "head-only" or not torch.equal(changed, found)


def switches(bench: Bench, method: str) -> None:
    """Of two adapters in one model each gives what it gives alone."""
    model = shake(bench.model(bench.single, method))
    alone = {"a": _features(model, bench)}
    model.add_adapter("b", METHODS[method])
    shake(model, 0.05)
    alone["b"] = _features(model, bench)
    found = {}
    for name in ("a", "b"):
        model.set_active(name)
        found[name] = _features(model, bench)
    bench.leave(bench.single, model)
    assert method == "head-only" or not torch.equal(alone["a"], alone["b"])
    assert all(torch.equal(found[name], alone[name]) for name in alone)


def works_beside_another(bench: Bench, method: str) -> None:
    """In a stack with a bottleneck adapter both take part, and both learn."""
    model = shake(bench.model(bench.single, method))
    alone = _features(model, bench)
    model.add_adapter("b", Bottleneck(size=8))
    shake(model, 0.05)
    model.set_active("a", "b")
    model.add_head("asr", CTCHead())
    model.train_adapter("a", "b", head="asr")
    _two_updates(model, bench, rate=0.0)
    model.check_alive()
    both = _features(model.eval(), bench)
    bench.leave(bench.single, model)
    assert not torch.allclose(both, alone)


def is_safe_with_padding(bench: Bench, method: str) -> None:
    """An utterance gives the same alone and in a padded batch."""
    model = shake(bench.model(bench.padding, method))
    with torch.no_grad():
        together = model(bench.waveforms, bench.lengths)
        alone = model(bench.waveforms[1:, : bench.lengths[1]])
    bench.leave(bench.padding, model)
    frames = int(together.frame_lengths[1])
    assert alone.features.shape[1] == frames == int(alone.frame_lengths[0])
    torch.testing.assert_close(together.features[1, :frames], alone.features[0], atol=1e-4, rtol=0)


def recomputes(bench: Bench, method: str) -> None:
    """Gradient checkpointing gives the same gradients."""
    model = shake(bench.model(bench.single, method, head=True)).train()
    gradients = []
    for model.gradient_checkpointing in (False, True, "selective"):
        model.zero_grad()
        torch.manual_seed(5)  # dropout
        model(bench.waveforms, bench.lengths, targets=TARGETS).loss.backward()
        gradients.append([p.grad for p in parameters(model)])
    bench.leave(bench.single, model)
    for recomputed in gradients[1:]:
        torch.testing.assert_close(recomputed, gradients[0], atol=1e-6, rtol=1e-4)


def trains_under_autocast(bench: Bench, method: str) -> None:
    """Under bfloat16 autocast the loss is float32, gradients are finite, features keep their direction."""
    model = bench.model(bench.single, method, head=True)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(bench.waveforms, bench.lengths, targets=TARGETS)
    check_reduced_precision(model, output, model, bench.waveforms, bench.lengths)
    bench.leave(bench.single, model)


def copies(bench: Bench, method: str) -> None:
    """``copy.deepcopy`` and ``pickle`` give models of their own with the same output."""
    model = shake(bench.model(bench.single, method))
    expected = _features(model, bench)
    twins = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
    for twin in twins:
        assert torch.equal(_features(twin, bench), expected)
        shake(twin)
    unchanged = _features(model, bench)
    bench.leave(bench.single, model)
    assert torch.equal(unchanged, expected)


def leaves_no_trace(bench: Bench, method: str) -> None:
    """After deletion the encoder has the modules, attributes and weights that it had before."""
    encoder = bench.single
    model = bench.model(encoder, method)
    model.delete_adapter("a")
    tree, attributes, _ = bench.look(encoder)
    assert (tree, attributes) == bench.before[encoder][:2]
    _same_weights(bench, encoder)


#: column of the support table -> check
PROMISES: dict[str, Callable[[Bench, str], None]] = {
    "start": starts_as_promised,
    "alive": is_alive,
    "trains alone": trains_alone,
    "save and load": saves_and_loads,
    "off": switches_off,
    "switch": switches,
    "several": works_beside_another,
    "padding": is_safe_with_padding,
    "checkpointing": recomputes,
    "autocast": trains_under_autocast,
    "copies": copies,
    "delete": leaves_no_trace,
}


def check_reduced_precision(model, output, reference, waveforms, lengths) -> None:
    """Loss in float32, finite gradients, and features in the direction of the reference's in full precision."""
    output.loss.backward()
    assert output.loss.dtype == torch.float32 and output.loss.isfinite()
    assert all(p.grad.isfinite().all() for p in parameters(model))
    with torch.no_grad():
        full = reference.eval()(waveforms, lengths)
    cosine = torch.nn.functional.cosine_similarity(output.features.float(), full.features, dim=-1)
    assert cosine[full.mask].mean() > 0.98


def _features(model: SpeechAdapterModel, bench: Bench) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(bench.waveforms, bench.lengths).features


def _two_updates(model: SpeechAdapterModel, bench: Bench, rate: float = 1e-3) -> None:
    optimizer = torch.optim.Adam(parameters(model), rate)
    waveforms = bench.waveforms.to(next(model.parameters()).dtype)
    for _ in range(2):
        optimizer.zero_grad()
        model(waveforms, bench.lengths, targets=TARGETS).loss.backward()
        optimizer.step()


def _same_weights(bench: Bench, encoder) -> None:
    now, before = encoder.model.state_dict(), bench.before[encoder][2]
    assert now.keys() == before.keys()
    assert all(torch.equal(now[key], before[key]) for key in now)
