"""Adapters of single users: corrections are learnt, kept, and touch nobody else."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_models import small_model

from speech_adapters.composition import Stack
from speech_adapters.data.manifest import Manifest
from speech_adapters.errors import AudioError, ConfigError, TextError
from speech_adapters.heads import ClassificationHead
from speech_adapters.locks import _HELD
from speech_adapters.tasks import user_adapters
from speech_adapters.tasks.user_adapters import UserAdapters
from speech_adapters.training.settings import TrainingConfig

TRAINING = TrainingConfig(
    updates=4,
    schedule="constant",
    warmup=0.0,
    precision="fp32",
    trackers=("none",),
    learning_rates={"bottleneck": 0.01},
)


def speech(seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    pitch = np.repeat(rng.choice([200, 500, 1200, 3000], 8), 2000)
    return (0.3 * np.sin(2 * np.pi * np.cumsum(pitch) / 16000)).astype(np.float32)


def shared():
    """A model whose adapter and head make a difference."""
    model = small_model("wavlm", "pre-norm", "e", head=True)
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in [*model.adapters.parameters(), *model.heads.parameters()]:
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


@torch.no_grad()
def answer(model, choice) -> torch.Tensor:
    return model(torch.tensor(speech(3))[None], adapter=[choice]).logits


def test_a_first_correction_that_another_process_learns_meanwhile_is_gone_on_from(tmp_path, monkeypatch) -> None:
    UserAdapters(shared(), tmp_path / "one", training=TRAINING).correct("anna", speech(0), "YES YES")
    one, ours = (UserAdapters(shared(), tmp_path / name, training=TRAINING) for name in ("one", "two"))
    one.correct("anna", speech(1), "NO")
    listen, others = user_adapters.recordings_of, [UserAdapters(shared(), tmp_path / "two", training=TRAINING)]

    def beside_another(*arguments, **options):
        while others:
            others.pop().correct("anna", speech(0), "YES YES")
        return listen(*arguments, **options)

    monkeypatch.setattr(user_adapters, "recordings_of", beside_another)
    ours.correct("anna", speech(1), "NO")
    expected, found = (answer(users.model, users.choice("anna")) for users in (one, ours))
    assert torch.equal(found, expected)


def test_a_user_whose_first_adapter_was_killed_half_saved_has_what_all_share(tmp_path) -> None:
    users = UserAdapters(shared(), tmp_path, training=TRAINING)
    place = tmp_path / "anna" / "adapter"
    place.mkdir(parents=True)
    (place / "adapter_model-0123456789abcdef.safetensors").touch()
    assert users.choice("anna") == "a"
    users.correct("anna", speech(0), "YES YES")
    assert UserAdapters(shared(), tmp_path, training=TRAINING).choice("anna") == Stack("a", "user-anna")


def test_a_correction_is_learnt_kept_and_touches_nobody_else(tmp_path) -> None:
    model = shared()
    users = UserAdapters(model, tmp_path / "users", training=TRAINING)
    assert users.choice("anna") == "a"
    base = answer(model, "a")

    first = users.correct("anna", speech(0), "YES YES")
    assert first.updates == 4 and users.choice("anna") == Stack("a", "user-anna")
    annas = answer(model, users.choice("anna"))
    assert not torch.equal(annas, base)
    assert torch.equal(answer(model, "a"), base)

    held = set(_HELD)
    users.correct("bo", speech(1), "NO")
    assert set(_HELD) == held, "no lock stays open"
    assert torch.equal(answer(model, users.choice("anna")), annas)
    assert torch.equal(answer(model, "a"), base)
    assert not torch.equal(answer(model, users.choice("bo")), annas)
    both = model(
        torch.tensor(speech(3)).repeat(3, 1), adapter=[users.choice("anna"), users.choice("bo"), users.choice("cy")]
    )
    assert torch.allclose(both.logits[0], annas[0], atol=1e-5) and torch.allclose(both.logits[2], base[0], atol=1e-5)

    assert model.active == "a" and not model.training and not any(p.requires_grad for p in model.parameters())
    kept = Manifest.read(tmp_path / "users/anna/corrections.jsonl", require=("text", "speaker"), check_files=True)
    assert [(u.text, u.speaker) for u in kept] == [("YES YES", "anna")]

    again = UserAdapters(shared(), tmp_path / "users", training=TRAINING)
    assert torch.equal(answer(again.model, again.choice("anna")), annas)
    assert again.transcribe("anna", speech(3)).text == users.transcribe("anna", speech(3)).text
    assert again.model.active == "a"


def test_corrections_add_up_and_the_errors_fall(tmp_path) -> None:
    model = shared()
    users = UserAdapters(model, tmp_path, training=TRAINING)
    losses = [users.correct("anna", speech(0), "YES").final_loss for _ in range(4)]
    assert losses[-1] < losses[0]
    assert len(Manifest.read(tmp_path / "anna/corrections.jsonl")) == 4
    card = model.registry.adapter("user-anna")
    users.forget("anna")
    assert "user-anna" not in model.adapters
    users.choice("anna")
    assert all(torch.equal(a, b) for a, b in zip(card.tensors().values(),
               model.registry.adapter("user-anna").tensors().values(), strict=True))  # fmt: skip


def test_bad_corrections_leave_no_trace(tmp_path) -> None:
    model = shared()
    users = UserAdapters(model, tmp_path, training=TRAINING)
    for audio, text, error in (
        (speech(0), "YES " * 200, TextError),
        (speech(0), "", TextError),
        (speech(0), "ДА", TextError),
        (np.zeros(0, np.float32), "YES", AudioError),
    ):
        with pytest.raises(error):
            users.correct("anna", audio, text)
    assert users.choice("anna") == "a" and list(model.adapters) == ["a"]
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    with pytest.raises(ConfigError, match="it names a folder"):
        users.correct("../anna", speech(0), "YES")
    model.add_head("mood", ClassificationHead(("calm", "angry")))
    with pytest.raises(ConfigError, match="CTC head"):
        UserAdapters(model, tmp_path)


def test_a_training_that_fails_leaves_the_last_adapter(tmp_path, monkeypatch) -> None:
    model = shared()
    users = UserAdapters(model, tmp_path, training=TRAINING)
    users.correct("anna", speech(0), "YES")
    annas = answer(model, users.choice("anna"))

    def fails(*_, **__) -> None:
        raise KeyError

    monkeypatch.setattr(model, "save_adapter", fails)
    with pytest.raises(KeyError):
        users.correct("anna", speech(1), "NO")
    assert torch.equal(answer(model, users.choice("anna")), annas) and model.active == "a"
