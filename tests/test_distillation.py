"""Distillation of hidden states: the loss, its teacher, its student and the crops it hears."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoModel, WhisperConfig, WhisperFeatureExtractor
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from speech_adapters.data.audio import write_audio
from speech_adapters.data.augmentation import Augmentation
from speech_adapters.data.crops import Crops, Speech, crop_batches
from speech_adapters.data.manifest import Manifest, Utterance
from speech_adapters.encoders import encode, load_encoder
from speech_adapters.errors import CheckpointError, ConfigError
from speech_adapters.objectives.distillation import HiddenStateDistillation
from speech_adapters.objectives.whisper_student import mel_gabor, save_encoder, whisper_student
from speech_adapters.objectives.whisper_teacher import WhisperTeacher

FIELD = 1040  # samples under one frame of the default student


def states(layers: int = 3, batch: int = 4, frames: int = 50, width: int = 8, seed: int = 0) -> list[Tensor]:
    """Teacher-like states: channels of different mean and scale."""
    generator = torch.Generator().manual_seed(seed)
    scale, offset = torch.logspace(-0.4, 0.4, width), torch.linspace(-3, 3, width)
    return [torch.randn(batch, frames, width, generator=generator) * scale + offset for _ in range(layers)]


def observed(teacher: list[Tensor], width: int = 8, **options) -> HiddenStateDistillation:
    pairs = [(i, i) for i in range(len(teacher))]
    loss = HiddenStateDistillation(width, teacher[0].shape[-1], pairs, **options)
    loss.observe(teacher)
    loss.finish_observing()
    return loss


def test_identical_states_cost_nothing() -> None:
    teacher = states()
    output = observed(teacher)(teacher, teacher)
    assert output.loss == 0
    torch.testing.assert_close(output.layer_cosines, torch.ones(3))


def test_predicting_the_mean_costs_one_a_layer() -> None:
    teacher = states(frames=400)
    loss = observed(teacher, weights=[0.5, 1, 2])
    output = loss([mean.expand_as(state) for mean, state in zip(loss.mean, teacher, strict=True)], teacher)
    torch.testing.assert_close(output.layer_losses, torch.ones(3), rtol=0.01, atol=0)
    torch.testing.assert_close(output.loss, torch.tensor(3.5), rtol=0.01, atol=0)


def test_absolute_positions_are_removed() -> None:
    content = states(layers=1, batch=64)[0]
    positions = 5 * torch.randn(50, 8, generator=torch.Generator().manual_seed(1))
    with_positions = [content + positions - positions.mean(0)]
    student = [content]  # a student that knows the content, but not how long ago the recording began
    removed = observed(with_positions, max_positions=50)
    assert removed(student, with_positions).loss < 0.05
    assert observed(with_positions)(student, with_positions).loss > 0.5
    # What is left counts as one: the position's own variance is not in the scale.
    mean = removed.mean[0].expand_as(content)
    torch.testing.assert_close(removed([mean], with_positions).loss, torch.tensor(1.0), rtol=0.03, atol=0)


def test_longer_input_than_positions_known() -> None:
    loss = observed(states(), max_positions=20)
    longer = states(frames=70, seed=3)
    torch.testing.assert_close(loss.target(longer[0], 0)[:, 20:], longer[0][:, 20:])
    assert loss(longer, longer).loss.isfinite()


def test_statistics_of_pieces_equal_those_of_the_whole() -> None:
    whole = states(batch=6)
    pieces = HiddenStateDistillation(8, 8, [(0, 0), (1, 1), (2, 2)], max_positions=50)
    for part in (slice(0, 1), slice(1, 6)):
        pieces.observe([state[part] for state in whole])
    pieces.finish_observing()
    for name, buffer in observed(whole, max_positions=50).named_buffers():
        torch.testing.assert_close(pieces.get_buffer(name), buffer)


def test_masked_frames_do_not_count() -> None:
    teacher, mask = states(), torch.ones(4, 50, dtype=torch.bool)
    mask[1, 30:] = mask[3, 10:] = False
    loss = HiddenStateDistillation(8, 8, [(0, 0), (1, 1), (2, 2)], max_positions=50)
    spoilt = [state.masked_fill(~mask.unsqueeze(-1), 1e3) for state in teacher]
    loss.observe(spoilt, mask)
    loss.finish_observing()
    assert loss.mean.abs().max() < 10
    assert loss(spoilt, [state + 0 for state in spoilt], mask).loss < 10
    shifted = [state.masked_fill(~mask.unsqueeze(-1), -1e3) for state in teacher]
    torch.testing.assert_close(loss(spoilt, teacher, mask).loss, loss(shifted, teacher, mask).loss)


def test_other_widths_are_projected_and_gradients_flow() -> None:
    teacher = states(layers=4)
    student = [torch.randn(4, 50, 5, requires_grad=True) for _ in range(3)]
    loss = HiddenStateDistillation(5, 8, [(0, 1), (2, 3)])
    loss.observe(teacher)
    loss.finish_observing()
    loss(student, teacher).loss.backward()
    assert [state.grad is not None and bool(state.grad.any()) for state in student] == [True, False, True]
    assert all(p.grad is not None and p.grad.any() for p in loss.projections.parameters())


def test_a_student_learns() -> None:
    torch.manual_seed(0)
    inputs, teacher_map, student_map = torch.randn(8, 20, 6), nn.Linear(6, 8), nn.Linear(6, 8)
    target = [teacher_map(inputs).detach()]
    loss = observed(target)
    optimizer = torch.optim.Adam(student_map.parameters(), lr=0.05)
    for _ in range(200):
        output = loss([student_map(inputs)], target)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
    assert output.loss < 0.01 and output.layer_cosines[0] > 0.99


def test_statistics_travel_with_the_state_dict() -> None:
    loss = observed(states(), max_positions=50)
    again = HiddenStateDistillation(8, 8, [(0, 0), (1, 1), (2, 2)], max_positions=50)
    again.load_state_dict(loss.state_dict())
    student, teacher = states(seed=1), states()
    assert again(student, teacher).loss == loss(student, teacher).loss


def test_bad_arguments() -> None:
    with pytest.raises(ConfigError, match="at least one"):
        HiddenStateDistillation(8, 8, [])
    with pytest.raises(ConfigError, match="2 given for 1 layer pairs"):
        HiddenStateDistillation(8, 8, [(0, 0)], weights=[1, 2])
    with pytest.raises(ConfigError, match="observe"):
        HiddenStateDistillation(8, 8, [(0, 0)]).finish_observing()
    with pytest.raises(ConfigError, match="frame rates and lengths must agree"):
        observed(states())(states(frames=49), states())


# --- Whisper as teacher ----------------------------------------------------------------------------------------------


def save_tiny_teacher(path: Path, positions: int = 1500) -> WhisperEncoder:
    """A random encoder of 64 channels and 2 layers, saved in the teacher's format (fp16)."""
    torch.manual_seed(0)
    config = WhisperConfig(
        d_model=64, encoder_layers=2, encoder_attention_heads=1, encoder_ffn_dim=96, num_mel_bins=80,
        max_source_positions=positions, activation_function="gelu", dropout=0.0,
    )  # fmt: skip
    encoder = WhisperEncoder(config).eval().half().float()  # so that fp16 loses nothing
    save_file({name: tensor.half().contiguous() for name, tensor in encoder.state_dict().items()}, str(path))
    return encoder


@pytest.fixture(scope="module")
def teacher_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    save_tiny_teacher(path)
    return path


def noise(seconds: float, seed: int = 0) -> Tensor:
    return 0.1 * torch.randn(round(16_000 * seconds), generator=torch.Generator().manual_seed(seed))


def test_teacher_equals_whisper(tmp_path: Path) -> None:
    encoder = save_tiny_teacher(tmp_path / "teacher.safetensors")
    wave = noise(30)
    wave[:1000] = wave[-1000:] = 0  # the stock front-end mirrors the edges, ours pads zeros
    log_mel = WhisperFeatureExtractor(feature_size=80)(wave.numpy(), sampling_rate=16_000, return_tensors="pt")
    with torch.no_grad():
        expected = encoder(log_mel["input_features"], output_hidden_states=True)
    # With a receptive field of one hop, frame 0 is centred on sample 160; Whisper's is centred on sample 0.
    teacher = WhisperTeacher(tmp_path / "teacher.safetensors", receptive_field=320)
    found = teacher(nn.functional.pad(wave, (160, 0))[None, : len(wave)])
    assert len(found) == 3 and all(state.shape == (1, 1500, 64) for state in found)
    torch.testing.assert_close(found[0], expected.hidden_states[0], atol=2e-3, rtol=0)
    torch.testing.assert_close(found[1], expected.hidden_states[1], atol=2e-3, rtol=0)
    torch.testing.assert_close(found[2], expected.last_hidden_state, atol=2e-3, rtol=0)


def test_teacher_frames_stand_where_the_students_do(teacher_file: Path) -> None:
    teacher = WhisperTeacher(teacher_file, FIELD)
    student = whisper_student(teacher)
    for samples in (FIELD, FIELD + 319, FIELD + 320, 16_000):
        frames = student.feature_extractor(torch.zeros(1, samples)).shape[-1]
        assert (
            teacher(torch.zeros(1, samples))[0].shape[1]
            == frames
            == teacher.log_mel(torch.zeros(1, samples)).shape[-1] / 2
        )
    # A click in the middle of student frame 20 is loudest in the teacher's spectrum there, not a frame off.
    wave = torch.zeros(1, 16_000)
    wave[0, 20 * 320 + FIELD // 2] = 1.0
    energy = teacher.log_mel(wave).mean(1)[0]
    assert int(energy.argmax()) == 2 * 20
    torch.testing.assert_close(energy[2 * 20 - 1], energy[2 * 20 + 1])


def test_teacher_stops_at_a_layer(teacher_file: Path) -> None:
    teacher, wave = WhisperTeacher(teacher_file, FIELD), noise(1)[None]
    everything = teacher(wave)
    for stop in (0, 1):
        some = teacher(wave, stop)
        assert len(some) == stop + 1
        assert all(torch.equal(a, b) for a, b in zip(some, everything, strict=False))


def test_teacher_refuses_what_it_cannot_hear(teacher_file: Path, tmp_path: Path) -> None:
    teacher = WhisperTeacher(teacher_file, FIELD)
    assert teacher(torch.zeros(1, teacher.max_samples), 0)[0].shape[1] == 1500
    with pytest.raises(ConfigError, match="cut longer ones"):
        teacher(torch.zeros(1, teacher.max_samples + 1))
    with pytest.raises(ConfigError, match="leave shorter ones out"):
        teacher(torch.zeros(1, FIELD - 1))
    with pytest.raises(CheckpointError, match="no such file"):
        WhisperTeacher(tmp_path / "absent.safetensors", FIELD)


# --- its student -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["wav2vec2", "hubert", "wavlm"])
def test_student_layers_are_the_teachers(teacher_file: Path, family: str) -> None:
    """From the teacher's layer 0 on, the untrained student already gives the teacher's states."""
    teacher = WhisperTeacher(teacher_file, FIELD)
    student = whisper_student(teacher, family)
    wanted = teacher(noise(2)[None])
    with torch.no_grad():
        found = encode(student, hidden=wanted[0])
    torch.testing.assert_close(found.hidden_states[1], wanted[1], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.last_hidden_state, wanted[2], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", ["wav2vec2", "hubert", "wavlm"])
def test_exported_student_is_a_stock_checkpoint(teacher_file: Path, tmp_path: Path, family: str) -> None:
    student = whisper_student(WhisperTeacher(teacher_file, FIELD), family)
    save_encoder(student, tmp_path / "encoder")
    stock, report = AutoModel.from_pretrained(tmp_path / "encoder", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert stock.dtype == torch.float32  # stored in fp16, computed in fp32
    assert (tmp_path / "encoder/model.safetensors").stat().st_size < 2.1 * sum(p.numel() for p in student.parameters())
    ours, wave = load_encoder(tmp_path / "encoder"), noise(1)[None]
    assert ours.family == family and ours.normalize and ours.pre_norm and ours.stride == 320
    with torch.no_grad():
        expected = stock.eval()(ours.normalized(wave)).last_hidden_state
        torch.testing.assert_close(ours(wave).last_hidden_state, expected, atol=1e-5, rtol=1e-4)
    assert [path.name for path in tmp_path.iterdir()] == ["encoder"]


def test_hubert_shares_the_weights_of_wav2vec2(teacher_file: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    student = whisper_student(WhisperTeacher(teacher_file, FIELD))
    hubert = whisper_student(WhisperTeacher(teacher_file, FIELD), "hubert")
    save_encoder(student, tmp_path / "tiny-wav2vec2")
    with pytest.raises(CheckpointError, match="differs"):  # another random front-end
        save_encoder(hubert, tmp_path / "tiny-hubert", shared_with="../tiny-wav2vec2")
    hubert.load_state_dict(student.state_dict())
    save_encoder(hubert, tmp_path / "tiny-hubert", shared_with="../tiny-wav2vec2")
    assert not list((tmp_path / "tiny-hubert").glob("*.safetensors"))
    stock, report = AutoModel.from_pretrained(tmp_path / "tiny-hubert", output_loading_info=True)
    assert type(stock).__name__ == "HubertModel"
    assert not report["missing_keys"] and not report["unexpected_keys"]
    names = ("tiny-hubert", "tiny-wav2vec2")
    assert len({load_encoder(tmp_path / name).fingerprint for name in names}) == 1


def test_mel_gabor_filters_hear_their_frequencies() -> None:
    filters = mel_gabor(128, 320)
    assert filters.shape == (128, 1, 320)
    torch.testing.assert_close(filters.norm(dim=-1), torch.ones(128, 1))
    peaks = torch.fft.rfft(filters[:, 0], 3200).abs().argmax(-1) * 5  # Hz
    assert (peaks[::4].diff() > 0).all() and peaks[0] < 150 and peaks[-1] > 7000


# --- crops -----------------------------------------------------------------------------------------------------------


def speech_manifest(folder: Path, seconds: list[float]) -> Manifest:
    utterances = []
    for i, length in enumerate(seconds):
        write_audio(folder / f"{i}.wav", noise(length, seed=i))
        utterances.append(Utterance(f"u{i}", folder / f"{i}.wav", length))
    return Manifest(utterances, "speech")


def test_crops_hold_every_utterance_and_repeat_exactly(tmp_path: Path) -> None:
    manifest = speech_manifest(tmp_path, [0.3, 0.5, 0.8, 1.0, 1.2, 2.0])
    speech = Speech(manifest, tmp_path)
    shared = Speech(manifest, tmp_path)  # the second run decodes nothing
    assert len(list(tmp_path.glob("audio-*"))) == 2 and not list(tmp_path.glob(".audio*"))
    torch.testing.assert_close(speech.piece(3, 16_000, np.random.default_rng(0)), noise(1.0, 3), atol=2e-4, rtol=0)

    augment = Augmentation(speed_probability=0.0, telephone_probability=0.5, codecs=("mu-law",))
    options = {"crop_seconds": 0.5, "crops": 2, "speeds": (0.9, 1.0, 1.1), "augment": augment}
    crops = Crops(speech, (0, 1), **options)
    assert sorted(i for group in crops.groups for i in group) == [0, 1, 2, 3, 4, 5]
    batches = list(crop_batches(crops))
    again = list(crop_batches(Crops(shared, (0, 1), **options), range(1, len(crops))))
    for (clean, heard), (clean_again, heard_again) in zip(batches[1:], again, strict=True):
        assert clean.shape == heard.shape and clean.shape[1] <= 0.5 * 16_000 / 0.9 + 1
        assert torch.equal(clean, clean_again) and torch.equal(heard, heard_again)
    assert any(not torch.equal(clean, heard) for clean, heard in batches)
    other = Crops(speech, (0, 2), **options)
    assert not all(a[0].shape == b[0].shape and torch.equal(a[0], b[0]) for a, b in zip(batches, other, strict=False))


@pytest.mark.parametrize("seconds", [0.2, 0.6], ids=["crops", "whole"])
def test_crops_leave_no_utterance_out_and_group_them_anew_each_pass(tmp_path: Path, seconds: float) -> None:
    speech = Speech(speech_manifest(tmp_path, [0.5 + 0.001 * i for i in range(11)]), tmp_path)
    passes = [Crops(speech, (0, epoch), crop_seconds=seconds, crops=6).groups for epoch in range(5)]
    assert all({i for group in groups for i in group} == set(range(11)) for groups in passes)
    assert len({frozenset(map(frozenset, groups)) for groups in passes}) == 5
    assert passes[1] == Crops(speech, (0, 1), crop_seconds=seconds, crops=6).groups


def test_crops_without_usable_speech(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no utterance has 16000 samples"):
        Speech(speech_manifest(tmp_path, [0.5]), tmp_path, shortest=16_000)
