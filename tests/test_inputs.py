"""What beginners hand to a forward by mistake gets a sentence that names the argument and the remedy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_models import TARGETS, batch, small_model

from speech_adapters import ClassificationHead, SlotsHead
from speech_adapters.errors import AudioError, ConfigError

WAVEFORMS, LENGTHS = batch()
NAN = WAVEFORMS.clone()
NAN[1, 7] = float("nan")

AUDIO = [
    ((WAVEFORMS.numpy(),), r"waveforms: expected a tensor .*got numpy.ndarray; convert with torch.from_numpy"),
    (([np.zeros(6400), np.zeros(4800)],), r"waveforms: .*got list; pad them with torch.nn.utils.rnn.pad_sequence"),
    ((WAVEFORMS.tolist(),), "waveforms: .*got list; pad them"),
    (("call.wav",), "waveforms: expected a tensor .*got str"),
    (((WAVEFORMS * 1000).short(),), r"float tensor.*torch.int16; divide integers by their full scale \(32768"),
    ((WAVEFORMS[0],), r"expected a float tensor \(batch, samples\), got \(6400,\)"),
    ((NAN,), "waveforms: utterance 1 of the batch holds NaN or infinite samples"),
    ((WAVEFORMS / 0,), "utterance 0 of the batch holds NaN or infinite"),
    (
        (WAVEFORMS, [6400, 4800]),
        r"lengths: expected a tensor \(batch,\) of samples, got list; convert with",
    ),
    ((WAVEFORMS, np.array([6400, 4800])), "lengths: .*got numpy.ndarray; convert with torch.from_numpy"),
    ((WAVEFORMS, LENGTHS / 6400), r"lengths: expected 2 numbers of samples, none above 6400, got \[1.0, 0.75\]"),
    ((WAVEFORMS, LENGTHS[:1]), "lengths: expected 2 numbers of samples"),
]


@pytest.mark.parametrize(("arguments", "message"), AUDIO, ids=range(len(AUDIO)))
def test_audio(arguments, message):
    with pytest.raises(AudioError, match=message):
        small_model(head=True)(*arguments)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (torch.tensor([[5, 32], [6, 7]]), r"targets: id 32 is none of the head's 32 \(0 to 31, -100 pads\)"),
        (torch.tensor([[5, -1], [6, 7]]), "targets: id -1 is none of the head's 32"),
        (TARGETS[0], r"targets: expected integers \(batch, symbols\) for 2 utterances, got \(4,\) torch.int64"),
        (TARGETS[:1], r"for 2 utterances, got \(1, 4\)"),
        (TARGETS.float(), "got .* torch.float32"),
        (TARGETS.tolist(), r"targets: expected a tensor \(batch, ids\) of integers, padded with -100, got list"),
        ("hello", "targets: .*got str"),
    ],
    ids=range(7),
)
def test_targets_of_ctc(targets, message):
    model = small_model(head=True)
    with pytest.raises(ConfigError, match=message):
        model(WAVEFORMS, LENGTHS, targets=targets)
    with pytest.raises(ConfigError, match=message):
        model(WAVEFORMS, LENGTHS, labels=targets)


def test_targets_of_classes():
    model = small_model()
    model.add_head("emotion", ClassificationHead(labels=("calm", "cross", "sad")))
    assert model(WAVEFORMS, LENGTHS, targets=torch.tensor([[2], [0]])).loss.isfinite()
    for targets, message in (
        (torch.tensor([2, 0]), r"\(batch, 1\), one column per label for 2 utterances, got \(2,\).*targets\[:, None\]"),
        (torch.tensor([[3], [0]]), "id 3 is none of the head's 3"),
        (torch.empty(2, 0, dtype=torch.long), r"got \(2, 0\)"),
    ):
        with pytest.raises(ConfigError, match=message):
            model(WAVEFORMS, LENGTHS, targets=targets)
    model.add_head("intent", SlotsHead(slots={"action": ("on", "off"), "room": ("hall", "bath")}))
    assert model(WAVEFORMS, LENGTHS, targets=torch.tensor([[1, 0], [0, 1]])).loss.isfinite()


def test_a_forgotten_head_is_said_before_the_forward():
    with pytest.raises(ConfigError, match="targets were given but no head is active; call set_head or add_head"):
        small_model()(WAVEFORMS, LENGTHS, labels=TARGETS)
