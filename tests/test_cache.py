"""Training from cached activations equals training from waveforms."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from small_encoders import small_encoder
from test_training import HEAD, QUIET, manifest  # noqa: F401  (a fixture)

from speech_adapters.adapters import Bottleneck
from speech_adapters.data.audio import write_audio
from speech_adapters.data.augmentation import Augmentation
from speech_adapters.data.batches import GuidedDataset, SpeechDataset, collate
from speech_adapters.data.manifest import Manifest
from speech_adapters.errors import CheckpointError, ConfigError
from speech_adapters.model import SpeechAdapterModel
from speech_adapters.runs.folder import RunFolder
from speech_adapters.tasks.asr import evaluate_asr
from speech_adapters.training.cache import CachedDataset
from speech_adapters.training.loop import TrainingResult
from speech_adapters.training.settings import TrainingConfig
from speech_adapters.training.supervised import train

START = {"head-only": 3, "l": 0, "elp": None, "top": 2}  # the layer where training starts; None: the CNN's output


def losses(folder, manifest, method, style, **settings) -> tuple[list[float], TrainingResult]:  # noqa: F811
    """Losses by update, and what training cost."""
    torch.manual_seed(0)
    model = SpeechAdapterModel(small_encoder("wavlm", style))
    model.add_adapter("a", Bottleneck(layers=(-1,)) if method == "top" else method)
    model.add_head("asr", HEAD)
    model.train_adapter("a", head="asr")
    data = SpeechDataset(manifest, HEAD.target)
    run = RunFolder.create("test", root=folder)
    result = train(model, data, TrainingConfig(updates=6, **{**QUIET, **settings}), run, data)
    return [line["loss"] for line in run.read_metrics() if "loss" in line], result


@pytest.mark.parametrize("style", ["pre-norm", "post-norm"])
@pytest.mark.parametrize("method", START)
def test_the_same_losses_as_from_waveforms(tmp_path, manifest, method, style):  # noqa: F811
    # Padding changes what a group-norm CNN computes: there one utterance a batch is the figure to compare with.
    alone = {"batch_seconds": 0.1, "accumulation": 4} if style == "post-norm" else {}
    settings = {"evaluate_every": 3, **alone}
    expected, plain = losses(tmp_path / "plain", manifest, method, style, **settings)
    cache = tmp_path / "cache"
    found, cached = losses(tmp_path / "cached", manifest, method, style, cache=cache, **settings)
    files = {path: path.stat().st_mtime_ns for path in cache.iterdir()}
    again, _ = losses(tmp_path / "again", manifest, method, style, cache=cache, **settings)
    assert len(expected) == 6
    torch.testing.assert_close(found, expected, atol=5e-3, rtol=5e-3)  # half precision on disk
    assert again == found and {path: path.stat().st_mtime_ns for path in cache.iterdir()} == files
    assert abs(cached.best_dev_loss - plain.best_dev_loss) < 5e-3 * plain.best_dev_loss
    assert (
        0.9 < cached.audio_seconds_per_second * cached.seconds / (plain.audio_seconds_per_second * plain.seconds) <= 1
    )
    assert len(files) == 2  # train and dev are one manifest here: one file of values, one of lengths


def test_what_would_change_the_activations_is_refused(tmp_path, manifest):  # noqa: F811
    with pytest.raises(ConfigError, match="training.cache: augmentation, time masks and crops"):
        TrainingConfig(cache=tmp_path, time_mask_probability=0.05)
    with pytest.raises(ConfigError, match="training.cache"):
        TrainingConfig(cache=tmp_path, augmentation=Augmentation())


def test_what_a_dataset_says_beside_the_sound_survives_the_cache(tmp_path, manifest):  # noqa: F811
    model = SpeechAdapterModel(small_encoder("wavlm", "pre-norm"))
    heard = manifest.map(lambda u: replace(u, domain=("a", "b", "c")[len(u.id) % 3]))
    data = GuidedDataset(heard, ["b", "a"], target=HEAD.target)
    whole = CachedDataset(data, model, tmp_path / "cache", 60)
    for cached in (whole, whole.part(data)):
        assert [cached[i]["guide"] for i in range(len(data))] == [data[i]["guide"] for i in range(len(data))]
        assert "guide" in collate([cached[0], cached[1]])


def test_a_part_is_the_whole_in_other_places_and_scores_alike(tmp_path, manifest):  # noqa: F811
    """Rounds of active learning train and look at parts of one cached pool, under targets of their own."""
    torch.manual_seed(0)
    model = SpeechAdapterModel(small_encoder("wavlm", "pre-norm"))
    model.add_adapter("a", Bottleneck(layers=(-1,)))
    model.add_head("asr", HEAD)
    whole = CachedDataset(SpeechDataset(manifest), model, tmp_path / "cache", 60)
    part = whole.part(SpeechDataset(Manifest([manifest[3], manifest[1]]), HEAD.target))
    for place, source in enumerate((3, 1)):
        assert torch.equal(part[place]["cached"], whole[source]["cached"]) and part[place]["index"] == place
        assert part[place]["target"].tolist() == HEAD.target(manifest[source])
    plain, cached = (evaluate_asr(model, manifest, cache=cache).result for cache in (None, tmp_path / "cache"))
    assert plain == cached and any(score.hypothesis for score in plain.utterances)


def copied(manifest, folder, change):  # noqa: F811
    """The same corpus in another folder, under the same names and durations, its audio changed."""
    folder.mkdir()
    copies = []
    for u in manifest:
        write_audio(folder / u.audio_filepath.name, change(u.waveform()))
        copies.append(replace(u, audio_filepath=folder / u.audio_filepath.name))
    return Manifest(copies, manifest.name)


def test_copies_of_a_corpus_and_audio_exported_anew_are_not_mistaken(tmp_path, manifest):  # noqa: F811
    clean = copied(manifest, tmp_path / "clean", lambda wave: wave)
    noisy = copied(manifest, tmp_path / "noisy", lambda wave: (wave + 0.05 * torch.randn_like(wave)).clamp(-1, 1))
    cache = tmp_path / "cache"
    one, two = (
        losses(tmp_path / m.name / str(i), m, "l", "pre-norm", cache=cache)[0] for i, m in enumerate((clean, noisy))
    )
    assert one != two and clean.sha256 != noisy.sha256 and clean.content_key() != noisy.content_key()
    before = clean.content_key(), clean.sha256
    u = clean[3]
    write_audio(u.audio_filepath, 0.5 * u.waveform())  # exported again in place: the same name, length and size
    assert clean.content_key() != before[0]
    assert Manifest(list(clean), clean.name).sha256 != before[1]
    three, _ = losses(tmp_path / "again", clean, "l", "pre-norm", cache=cache)
    assert three != one


def test_normalisation_is_part_of_the_key_and_damage_is_a_message(tmp_path, manifest):  # noqa: F811
    model = SpeechAdapterModel(small_encoder("wavlm", "pre-norm"))
    stores = []
    for normalize in (False, True):
        model.encoder.normalize = normalize
        stores.append(CachedDataset(SpeechDataset(manifest), model, tmp_path, 60))
    assert not torch.equal(stores[0][0]["cached"], stores[1][0]["cached"])
    for file in tmp_path.glob("*.bin"):
        file.write_bytes(bytes(file.stat().st_size))
    with pytest.raises(CheckpointError, match="this cache is damaged"):
        CachedDataset(SpeechDataset(manifest), model, tmp_path, 60)[0]
