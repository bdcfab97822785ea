"""Adaptation without labels: the published losses, what changes, and that everything comes back bit for bit."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import soundfile
import torch
from small_models import small_model

from speech_adapters.adapters import CNNAdapter
from speech_adapters.composition import Parallel, Stack
from speech_adapters.data.windows import Windows
from speech_adapters.errors import AudioError, CheckpointError, ConfigError
from speech_adapters.heads import ClassificationHead
from speech_adapters.inference.recordings import recordings_of
from speech_adapters.model import SpeechAdapterModel
from speech_adapters.unlabelled import Entropy, Prompt, SpeakerCode, source_statistics, transcribe_adapted
from speech_adapters.unlabelled.cma_es import CMAES
from speech_adapters.unlabelled.entropy import entropy_loss
from speech_adapters.unlabelled.speaker_code import conditional_entropy

SHORT = Windows(seconds=2.0)  # the small Whisper hears three
FAMILIES = [("wavlm", "post-norm"), ("wavlm", "pre-norm"), ("whisper", "pre-norm")]


def speech(seconds: float = 1.0, seed: int = 0) -> np.ndarray:
    """Changing tones, in noise."""
    rng = np.random.default_rng(seed)
    pitch = np.repeat(rng.choice([200, 500, 1200, 3000], 8), round(2000 * seconds))
    tone = np.sin(2 * np.pi * np.cumsum(pitch) / 16000)
    return (0.3 * tone + 0.02 * rng.standard_normal(len(pitch))).astype(np.float32)


def model_of(family: str = "wavlm", style: str = "pre-norm", method: str = "el") -> SpeechAdapterModel:
    """With an adapter that makes a difference, and a head that says more than blanks."""
    model = small_model(family, style, method, head=True)
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in [*model.adapters.parameters(), *model.heads.parameters()]:
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def searched(model: SpeechAdapterModel, **options) -> Prompt:
    source = source_statistics(model, recordings_of([speech(seed=9)])[0], SHORT)
    return Prompt(source=source, rounds=3, population=4, **options)


METHODS: dict[str, Callable[[SpeechAdapterModel], object]] = {
    "entropy": lambda model: Entropy(steps=3, learning_rate=1e-3),
    "adapters": lambda model: Entropy(steps=3, learning_rate=1e-3, change=("adapters",)),
    "norms": lambda model: Entropy(steps=3, learning_rate=1e-3, change=("norms",)),
    "speaker-code": lambda model: SpeakerCode(steps=3, beam=4),
    "prompt": searched,
}


def everything(model: SpeechAdapterModel) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(("family", "style"), FAMILIES)
def test_the_model_changes_and_comes_back_bit_for_bit(family, style, name) -> None:
    model = model_of(family, style)
    method, heard = METHODS[name](model), [speech(), speech(0.5, seed=1)]
    model.eval()
    before, said = everything(model), model(torch.tensor(heard[0])[None]).logits
    trainable = {key: p.requires_grad for key, p in model.named_parameters()}
    with model.adapted(heard, method, windows=SHORT) as done:
        changed = model(torch.tensor(heard[0])[None]).logits
        assert name == "prompt" or not torch.equal(said, changed)
        assert all(p.grad is None for p in model.parameters())
    assert done.losses and all(map(math.isfinite, done.losses)) and done.losses[-1] <= done.losses[0]
    assert done.parameters > 0 and (done.adapter is None) == isinstance(method, Entropy)
    with pytest.raises(KeyError), model.adapted(heard, method, windows=SHORT):
        raise KeyError
    after = everything(model)
    assert after.keys() == before.keys() and all(torch.equal(before[key], after[key]) for key in before)
    assert torch.equal(model(torch.tensor(heard[0])[None]).logits, said)
    assert model.active == "a" and not model.training
    assert trainable == {key: p.requires_grad for key, p in model.named_parameters()}


def test_a_model_in_training_goes_on_where_it_was() -> None:
    model = model_of()
    model(torch.tensor(speech())[None]).logits.sum().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    source_statistics(model, recordings_of([speech()])[0])
    assert model.training
    with model.adapted(speech(), Entropy(steps=2, change=("adapters", "norms"))):
        assert not model.training
    assert model.training and gradients
    assert all(torch.equal(p.grad, gradients[name]) for name, p in model.named_parameters() if p.grad is not None)


def test_it_changes_what_it_says_and_nothing_else() -> None:
    model = model_of()
    parts = {
        "norms": {name for name, module in model.named_modules() if isinstance(module, torch.nn.LayerNorm)},
        "cnn": {name for name, _ in model.named_modules() if "conv_layers" in name},
        "adapters": {"adapters"},
    }
    for change in (("norms",), ("cnn",), ("adapters",), ("norms", "cnn")):
        before = everything(model)
        with model.adapted(speech(), Entropy(steps=2, learning_rate=1e-3, change=change)):
            now = everything(model)
        changed = {name for name in now if not torch.equal(now[name], before[name])}
        mine = {name for part in change for name in parts[part]}
        assert changed and all(any(name.startswith(f"{place}.") for place in mine) for name in changed), change
        if change == (
            "norms",
        ):  # an E-adapter's preset has copies of the layers' norms, which stand in for the base's
            assert any(name.startswith("adapters.") for name in changed)
            assert not any(".conv_layers." in name for name in changed)


def test_every_number_of_a_code_learns_and_the_code_can_be_kept(tmp_path) -> None:
    model = model_of()
    with model.adapted([speech(), speech(seed=1)], SpeakerCode(steps=1, learning_rate=0.01)) as done:
        code = model.adapters[done.adapter].code.detach().clone()
        model.save_adapter(done.adapter, tmp_path / "code")
        said = model(torch.tensor(speech())[None]).logits
    assert bool((code.abs() > 1e-3).all())
    model.eval()
    model.load_adapter(tmp_path / "code", "anna")
    model.set_active("anna", "a")
    assert torch.equal(model(torch.tensor(speech())[None]).logits, said)


def test_what_is_saved_meanwhile_names_the_base_as_it_was_loaded(tmp_path) -> None:
    model, untouched = model_of(), model_of().encoder.fingerprint
    with model.adapted(speech(), Entropy(steps=1, learning_rate=1e-3)):
        model.save_adapter("a", tmp_path / "a")
    assert model.encoder.fingerprint == untouched
    model_of().load_adapter(tmp_path / "a", "again")


def test_loss_falls_step_by_step() -> None:
    model = model_of()
    with model.adapted(speech(), Entropy(steps=12, learning_rate=1e-3)) as done:
        losses = done.losses
    assert len(losses) == 12 and all(b < a for a, b in itertools.pairwise(losses))
    with model.adapted(speech(), SpeakerCode(steps=12, learning_rate=0.003, beam=4)) as done:
        assert done.losses[-1] < done.losses[0]


def test_where_everything_is_blank_nothing_is_changed() -> None:
    model = model_of()
    with torch.no_grad():
        model.head.linear.bias[model.head.blank] += 100
    before = everything(model)
    with model.adapted(speech(), Entropy()) as done:
        assert all(torch.equal(tensor, before[name]) for name, tensor in everything(model).items())
    assert done.losses == ()


# ---------------------------------------------------------------------- formulas


def test_suta_is_the_published_loss() -> None:
    rng = np.random.default_rng(0)
    logits = torch.tensor(3 * rng.standard_normal((9, 5)), dtype=torch.float64)
    p = np.exp(logits.numpy() / 2.5)
    p /= p.sum(1, keepdims=True)
    entropy = -(p * np.log(p)).sum(1)
    spoken = logits.numpy().argmax(1) != 0
    weight = 1 + np.exp(-entropy)
    weight *= len(weight) / weight.sum()
    confusion = np.zeros((5, 5))
    for t in range(9):
        confusion += weight[t] * np.outer(p[t], p[t])
    confusion /= confusion.sum(1, keepdims=True)
    off = confusion.sum() - np.trace(confusion)
    expected = 0.3 * entropy[spoken].mean() + 0.7 * off / 5
    assert float(entropy_loss(logits, 0, 0.3, 2.5)) == pytest.approx(expected, rel=1e-9)


def test_conditional_entropy_is_that_of_all_texts() -> None:
    rng = np.random.default_rng(1)
    logits = torch.tensor(rng.standard_normal((4, 3)), dtype=torch.float64, requires_grad=True)
    log_p = logits.detach().log_softmax(-1).numpy()
    texts: dict[tuple[int, ...], float] = {}
    for path in itertools.product(range(3), repeat=4):
        text = tuple(symbol for symbol, _ in itertools.groupby(path) if symbol != 0)
        texts[text] = texts.get(text, 0.0) + math.exp(sum(log_p[t, s] for t, s in enumerate(path)))
    expected = -sum(q * math.log(q) for q in texts.values())
    found = conditional_entropy(logits, 0, beam=1000)
    assert float(found.detach()) == pytest.approx(expected, rel=1e-6)
    found.backward()
    assert bool((logits.grad != 0).all())


def test_the_search_finds_the_least_of_a_turned_ellipsoid() -> None:
    rng = np.random.default_rng(2)
    turn, _ = np.linalg.qr(rng.standard_normal((6, 6)))
    goal, scale = rng.standard_normal(6), np.logspace(0, 2, 6)
    search = CMAES(np.zeros(6), 0.5, 12, seed=1)
    for _ in range(250):
        candidates = search.ask()
        search.tell(candidates, (((candidates - goal) @ turn) ** 2 * scale).sum(1))
    assert np.abs(search.mean - goal).max() < 1e-4


def test_a_prompt_is_never_worse_than_none_and_follows_its_seed() -> None:
    model = model_of()
    prompts = []
    for seed in (0, 0, 1):
        with model.adapted(speech(), searched(model, sigma=0.1, patience=0, seed=seed)) as done:
            prompts.append(model.adapters[done.adapter].code.detach().clone())
        assert len(done.losses) == 4 and all(b <= a for a, b in itertools.pairwise(done.losses))
    assert torch.equal(prompts[0], prompts[1]) and not torch.equal(prompts[0], prompts[2])


# ---------------------------------------------------------------------- what is refused


def test_a_search_whose_losses_are_no_numbers_is_refused(monkeypatch) -> None:
    model = model_of()
    method = searched(model)
    monkeypatch.setattr(
        Prompt, "_losses", lambda self, model, head, candidates, speech: np.full(len(candidates), np.nan)
    )
    with pytest.raises(CheckpointError, match="not finite"), model.adapted(speech(), method, windows=SHORT):
        pass


def test_a_candidate_whose_loss_is_no_number_is_the_worst(monkeypatch) -> None:
    model = model_of()
    method, losses = searched(model), Prompt._losses

    def spoilt(self, model, head, candidates, speech):
        found = losses(self, model, head, candidates, speech)
        if len(candidates) > 1:
            found[0] = np.nan
        return found

    monkeypatch.setattr(Prompt, "_losses", spoilt)
    with model.adapted(speech(), method, windows=SHORT) as done:
        assert done.losses[-1] < done.losses[0] and model.adapters[done.adapter].code.any()


def test_bad_input_is_refused_and_leaves_no_trace() -> None:
    model = model_of()
    model.eval()
    before, names = everything(model), list(model.adapters)
    for bad in (np.zeros(0, np.float32), np.full(16000, np.nan, np.float32), "missing.wav"):
        with pytest.raises(AudioError), model.adapted(bad, Entropy()):
            pass
    with pytest.raises(ConfigError, match="no audio was given"), model.adapted([], SpeakerCode()):
        pass
    assert list(model.adapters) == names and model.active == "a"
    assert all(torch.equal(tensor, before[name]) for name, tensor in everything(model).items())


def test_a_call_is_adapted_to_by_channel(tmp_path) -> None:
    model = model_of()
    soundfile.write(tmp_path / "call.wav", np.stack([speech(), speech(seed=1)], 1), 16000)
    both = recordings_of([tmp_path / "call.wav"], speakers=("agent", "customer"))
    with pytest.raises(ConfigError, match="2 channels are several voices"):
        next(transcribe_adapted(model, both, SpeakerCode()))
    one = recordings_of([tmp_path / "call.wav"], channel=1)
    said = next(transcribe_adapted(model, one, Entropy(steps=1)))
    assert said.duration == 1.0


def test_what_cannot_be_adapted_says_so() -> None:
    model = model_of()
    model.add_head("mood", ClassificationHead(("calm", "angry")))
    with pytest.raises(ConfigError, match="needs a CTC head, and head 'mood'"), model.adapted(speech(), Entropy()):
        pass
    model.set_head("asr")
    inferring = torch.inference_mode()
    with inferring, pytest.raises(ConfigError, match="gives no gradients; adapt outside of it"):
        model.adapted(speech(), Entropy(steps=1)).__enter__()
    model.add_adapter("b", "el")
    model.set_active(Parallel("a", "b"))
    with pytest.raises(ConfigError, match="several outputs"), model.adapted(speech(), SpeakerCode()):
        pass
    model.set_active()
    with (
        pytest.raises(ConfigError, match="no adapter is active"),
        model.adapted(speech(), Entropy(change=("adapters",))),
    ):
        pass
    with pytest.raises(ConfigError, match="change is empty"):
        Entropy(change=())
    with pytest.raises(ConfigError, match="SpeakerCode: beam=1: must be a whole number, at least 2"):
        SpeakerCode(beam=1)
    with pytest.raises(ConfigError, match="Entropy: temperature=0"):
        Entropy(temperature=0)

    mels = model_of("wav2vec2-bert")
    with pytest.raises(ConfigError, match="no convolutions"), mels.adapted(speech(), Entropy()):
        pass
    with mels.adapted(speech(), Entropy(change=("norms",), steps=1)) as done:
        assert done.losses

    twins = small_model("wavlm", "pre-norm", None, head=True)
    twins.add_adapter("a", CNNAdapter())
    with pytest.raises(ConfigError, match="inside the CNN"):
        source_statistics(twins, recordings_of([speech()])[0])


def test_a_half_precision_base_takes_a_code_and_no_steps_of_its_own() -> None:
    model = model_of()
    model.encoder.model.bfloat16()
    with pytest.raises(ConfigError, match="load the base in float32"), model.adapted(speech(), Entropy()):
        pass
    with model.adapted(speech(), SpeakerCode(steps=2, beam=2)) as done:
        assert len(done.losses) == 2


def test_a_code_goes_below_what_is_active_and_contexts_nest() -> None:
    model = model_of(method="elp")
    with model.adapted(speech(), SpeakerCode(steps=1, beam=2)) as outer:
        with model.adapted(speech(), SpeakerCode(steps=1, beam=2)) as inner:
            assert model.active == Stack(inner.adapter, outer.adapter, "a")
        assert model.active == Stack(outer.adapter, "a")
    assert model.active == "a"
