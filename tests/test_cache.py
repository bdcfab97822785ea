"""Training from cached activations equals training from waveforms; what is kept, shared, listed and cleared."""

from __future__ import annotations

import shutil
import threading
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from small_encoders import small_encoder
from test_training import HEAD, QUIET, manifest  # noqa: F401  (a fixture)

from speech_adapters.adapters import Bottleneck, LoRA
from speech_adapters.data.audio import write_audio
from speech_adapters.data.augmentation import Augmentation
from speech_adapters.data.batches import GuidedDataset, SpeechDataset, collate
from speech_adapters.data.manifest import Manifest
from speech_adapters.errors import CheckpointError, ConfigError, InputError
from speech_adapters.heads import ClassificationHead
from speech_adapters.model import SpeechAdapterModel
from speech_adapters.runs.folder import RunFolder
from speech_adapters.tasks.asr import evaluate_asr
from speech_adapters.training import cache as cache_file
from speech_adapters.training import cached_dataset
from speech_adapters.training.cache import clear_cache, list_caches
from speech_adapters.training.cached_dataset import CachedDataset
from speech_adapters.training.frozen import frozen_part, model_inputs
from speech_adapters.training.result import TrainingResult
from speech_adapters.training.settings import Cache, TrainingConfig
from speech_adapters.training.supervised import train

EXACT = {"atol": 1e-5, "rtol": 3e-5}  # Adam's first updates turn the rounding of gradients near zero into steps
KEPT = {  # what is constant, on an encoder of three layers
    "head-only": ["state-3"],
    "l": ["state-0"],
    "l-frozen": ["state-1", "state-2", "state-3"],
    "weighted-sum": ["state-0", "state-1", "state-2", "state-3"],
    "elp": ["cnn"],
    "top": ["state-2"],
    "lora": ["state-0"],
}
WORDS = ClassificationHead(labels=("YES", "NO", "MAYBE"), label_field="text", dropout=0.0)


def make_model(method, style="pre-norm", head=HEAD, normalize=True) -> SpeechAdapterModel:
    torch.manual_seed(0)
    model = SpeechAdapterModel(small_encoder("wavlm", style))
    model.encoder.normalize = normalize
    model.add_adapter("a", Bottleneck(layers=(-1,)) if method == "top" else method)
    model.add_head("head", head)
    model.train_adapter("a", head="head")
    return model


def losses(
    folder,
    manifest,  # noqa: F811
    method,
    style="pre-norm",
    *,
    head=HEAD,
    data=None,
    normalize=True,
    **settings,
) -> tuple[list[float], TrainingResult]:
    """Losses by update, and what training cost."""
    model = make_model(method, style, head, normalize)
    data = data or SpeechDataset(manifest, head.target, crop_seconds=settings.get("crop_seconds"))
    run = RunFolder.create("test", root=folder)
    dev = SpeechDataset(manifest, head.target)
    result = train(model, data, TrainingConfig(**{**QUIET, "updates": 6, **settings}), run, dev)
    return [line["loss"] for line in run.read_metrics() if "loss" in line], result


def files(folder) -> dict:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def taps(folder) -> list[str]:
    return sorted({path.parent.name for path in folder.rglob("*.npz")})


@pytest.mark.parametrize("style", ["pre-norm", "post-norm"])
@pytest.mark.parametrize("method", KEPT)
def test_the_same_losses_as_from_waveforms(tmp_path, manifest, method, style):  # noqa: F811
    # Padding changes what a group-norm CNN computes: there one utterance a batch is the figure to compare with.
    alone = {"batch_seconds": 0.1, "accumulation": 4} if style == "post-norm" else {}
    settings = {"evaluate_every": 3, **alone}
    expected, plain = losses(tmp_path / "plain", manifest, method, style, **settings)
    cache = Cache(folder=tmp_path / "cache", precision="fp32")
    found, cached = losses(tmp_path / "cached", manifest, method, style, cache=cache, **settings)
    before = files(cache.path)
    again, _ = losses(tmp_path / "again", manifest, method, style, cache=cache, **settings)
    assert len(expected) == 6
    torch.testing.assert_close(found, expected, **EXACT)
    assert again == found and files(cache.path) == before and taps(cache.path) == [f"{t}-fp32" for t in KEPT[method]]
    assert cached.best_dev_loss == pytest.approx(plain.best_dev_loss, rel=3e-5)
    heard = [result.audio_seconds_per_second * result.seconds for result in (cached, plain)]
    assert heard[0] == pytest.approx(heard[1])


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_is_close(tmp_path, manifest, precision):  # noqa: F811
    expected, _ = losses(tmp_path / "plain", manifest, "l-frozen")
    cache = Cache(folder=tmp_path / "cache", precision=precision)
    found, _ = losses(tmp_path / "cached", manifest, "l-frozen", cache=cache)
    assert found != expected
    torch.testing.assert_close(found, expected, atol=0.03, rtol=0.03 if precision == "bf16" else 5e-3)


@pytest.mark.parametrize("method", ["head-only", "l-frozen"])
def test_fifty_losses_and_workers(tmp_path, manifest, method):  # noqa: F811
    expected, _ = losses(tmp_path / "plain", manifest, method, updates=50)
    cache = Cache(folder=tmp_path / "cache", precision="fp32")
    workers = 2 if method == "head-only" else 0
    found, _ = losses(tmp_path / "cached", manifest, method, updates=50, cache=cache, workers=workers)
    assert len(found) == 50
    torch.testing.assert_close(found, expected, **EXACT)


def test_methods_share_what_both_read(tmp_path, manifest):  # noqa: F811
    data, cache = SpeechDataset(manifest), tmp_path / "cache"
    CachedDataset(data, make_model("l-frozen"), cache, 60)
    before = files(cache)
    whole = CachedDataset(data, make_model("weighted-sum"), cache, 60)
    added = files(cache).keys() - before.keys()
    assert {path.parent.name for path in added} == {"state-0-fp16"}
    assert {path: time for path, time in files(cache).items() if path in before and path.suffix != ".json"} == {
        path: time for path, time in before.items() if path.suffix != ".json"
    }
    assert torch.equal(whole[0]["cached"][:, 64:], CachedDataset(data, make_model("l-frozen"), cache, 60)[0]["cached"])


@pytest.mark.parametrize("style", ["pre-norm", "post-norm"])
def test_heads_that_read_means_are_given_means(tmp_path, manifest, style):  # noqa: F811
    alone = {"batch_seconds": 0.1, "accumulation": 4} if style == "post-norm" else {}
    settings = {"head": WORDS, "evaluate_every": 3, "updates": 12, **alone}
    expected, _ = losses(tmp_path / "plain", manifest, "head-only", style, **settings)
    cache = Cache(folder=tmp_path / "cache", precision="fp32")
    found, _ = losses(tmp_path / "cached", manifest, "head-only", style, cache=cache, **settings)
    torch.testing.assert_close(found, expected, **EXACT)
    assert taps(cache.path) == ["mean-fp32"]
    for changed in (replace(WORDS, dropout=0.1), replace(WORDS, pooling="statistics"), replace(WORDS, network="conv")):
        assert frozen_part(make_model("head-only", style, changed), pooled=True).kind == "states"


def test_masked_frames_leave_the_cnn(tmp_path, manifest):  # noqa: F811
    settings = {"time_mask_probability": 0.2, "evaluate_every": 3}
    expected, _ = losses(tmp_path / "plain", manifest, "lora", **settings)
    cache = Cache(folder=tmp_path / "cache", precision="fp32")
    found, _ = losses(tmp_path / "cached", manifest, "lora", cache=cache, **settings)
    torch.testing.assert_close(found, expected, **EXACT)
    assert taps(cache.path) == ["cnn-fp32", "state-0-fp32"], "the dev set is heard unmasked"


def test_crops_are_pieces_of_the_cnns_output(tmp_path, manifest):  # noqa: F811
    model = make_model("head-only", normalize=False, head=WORDS)
    data = SpeechDataset(manifest, WORDS.target, crop_seconds=0.3)
    cache = Cache(folder=tmp_path / "cache", precision="fp32")
    cached = CachedDataset(data, model, cache, 60)
    pieces = set()
    for cached.epoch in range(3):
        for index in (0, 11):
            found = cached[index]["cached"]
            assert len(found) == int(model.encoder.frame_lengths(4800))
            starts = range(0, len(data.waveform(index)) - 4800 + 1, model.encoder.stride)
            wave = data.waveform(index)[None]
            outputs = [model.encoder(wave[:, s : s + 4800], stop_layer=0).cnn_output[0] for s in starts]
            same = [torch.allclose(piece, found, atol=1e-5) for piece in outputs]
            pieces |= {(index, start) for start, equal in zip(starts, same, strict=True) if equal}
    assert len(pieces) > 3, "each is a piece, another one in each epoch"
    result, _ = losses(tmp_path, manifest, "head-only", head=WORDS, normalize=False, cache=cache, crop_seconds=0.3)
    assert len(result) == 6


def test_what_would_change_the_activations_is_refused(tmp_path, manifest):  # noqa: F811
    with pytest.raises(ConfigError, match="training.cache: augmentation changes"):
        TrainingConfig(cache=tmp_path, augmentation=Augmentation())
    cropped = SpeechDataset(manifest, crop_seconds=0.3)
    for style, normalize in (("pre-norm", True), ("post-norm", False)):
        with pytest.raises(ConfigError, match="hears a crop otherwise than as a piece"):
            CachedDataset(cropped, make_model("head-only", style, normalize=normalize), tmp_path, 60)
    with pytest.raises(ConfigError, match="acts inside the CNN"):
        CachedDataset(SpeechDataset(manifest), make_model("cnn-adapter"), tmp_path, 60)
    model = make_model("head-only")
    model.add_adapter("b", LoRA())
    model.fold_adapter("b")
    with pytest.raises(ConfigError, match="adapter 'b' is folded into the base"):
        CachedDataset(SpeechDataset(manifest), model, tmp_path, 60)
    with pytest.raises(ConfigError, match=r"cache.max_gb=-1"):
        Cache(max_gb=-1)
    assert not files(tmp_path)


@pytest.mark.parametrize("style", ["pre-norm", "post-norm"])
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_a_budget_keeps_what_fits_and_computes_the_rest(tmp_path, manifest, share, style, capsys):  # noqa: F811
    alone = {"batch_seconds": 0.1, "accumulation": 4} if style == "post-norm" else {}
    frames = sum(int(small_encoder("wavlm", style).frame_lengths(round(u.duration * 16000))) for u in manifest)
    whole = frames * 64 * 4 * 3
    cache = Cache(folder=tmp_path / "cache", precision="fp32", max_gb=share * whole / 1e9)
    expected, _ = losses(tmp_path / "plain", manifest, "l-frozen", style, **alone)
    found, _ = losses(tmp_path / "cached", manifest, "l-frozen", style, cache=cache, **alone)
    torch.testing.assert_close(found, expected, **EXACT)
    values = sum(path.stat().st_size for path in cache.path.rglob("*.bin"))
    assert (values == 0) if share == 0 else (0.3 * whole < values <= share * whole)
    assert "the rest is computed in each epoch" in capsys.readouterr().out
    found, _ = losses(tmp_path / "rest", manifest, "l-frozen", style, cache=replace(cache, max_gb=None), **alone)
    torch.testing.assert_close(found, expected, **EXACT)
    assert sum(path.stat().st_size for path in cache.path.rglob("*.bin")) == whole, "nothing is kept twice"


def test_batches_of_kept_and_computed_utterances_keep_their_order(tmp_path, manifest):  # noqa: F811
    model = make_model("head-only")
    half = Manifest(list(manifest)[::2], "half")
    cache = Cache(folder=tmp_path / "cache", precision="fp32")
    CachedDataset(SpeechDataset(half), model, cache, 60)
    mixed = CachedDataset(SpeechDataset(manifest, HEAD.target), model, replace(cache, max_gb=0), 60)
    batch = collate([mixed[i] for i in range(6)])
    assert batch["cached"].shape[0] == batch["waveforms"].shape[0] == 3
    plain = collate([SpeechDataset(manifest, HEAD.target)[i] for i in range(6)])
    model.eval()
    found, expected = (model(**model_inputs(one, model)) for one in (batch, plain))
    assert found.frame_lengths.tolist() == expected.frame_lengths.tolist()
    for row, frames in enumerate(expected.frame_lengths.tolist()):
        torch.testing.assert_close(found.logits[row, :frames], expected.logits[row, :frames], **EXACT)


def test_a_disk_that_is_too_small_is_said_before_anything_is_computed(tmp_path, manifest, monkeypatch):  # noqa: F811
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(cached_dataset.shutil, "disk_usage", lambda _: usage(10, 10, 1000))
    with pytest.raises(InputError, match=r"takes? 0\.\d MB, and .* has 0.0 MB free; .* training.cache.max_gb"):
        CachedDataset(SpeechDataset(manifest), make_model("head-only"), tmp_path, 60)
    assert not files(tmp_path)


def test_a_stopped_run_loses_one_part(tmp_path, manifest, monkeypatch):  # noqa: F811
    monkeypatch.setattr(cached_dataset, "PART_SECONDS", 2.0)
    computed, compute = [], cached_dataset.compute_taps

    def stop_after_three(encoder, taps, waveforms, lengths):
        if len(computed) == 3:
            raise KeyboardInterrupt
        computed.append(len(lengths))
        return compute(encoder, taps, waveforms, lengths)

    monkeypatch.setattr(cached_dataset, "compute_taps", stop_after_three)
    with pytest.raises(KeyboardInterrupt):
        CachedDataset(SpeechDataset(manifest), make_model("l-frozen"), tmp_path, 2.4)
    stale = next(tmp_path.rglob("state-1-fp16")) / ".part.bin.999999999.tmp"
    stale.write_bytes(b"half")
    before = sum(computed)
    monkeypatch.setattr(cached_dataset, "compute_taps", lambda *a: computed.append(len(a[3])) or compute(*a))
    CachedDataset(SpeechDataset(manifest), make_model("l-frozen"), tmp_path, 2.4)
    assert before < len(manifest) and sum(computed) < before + len(manifest), "what was written is not computed again"
    assert not stale.exists(), "what killed processes left is swept away"


def test_processes_share_the_work(tmp_path, manifest, monkeypatch):  # noqa: F811
    class Process:
        num_processes, is_main_process = 2, True

        def __init__(self, index):
            self.process_index = index

        def wait_for_everyone(self):
            pass

        def print(self, *text):
            pass

    model, held = make_model("head-only"), []
    for rank in (0, 1):
        monkeypatch.setattr(cached_dataset, "processes", lambda rank=rank: Process(rank))
        data = CachedDataset(SpeechDataset(manifest), model, tmp_path / str(rank), 2.0)
        held.append({key for key in data.keys if key in data.taps["state-3"]})
    assert held[0] and held[1] and not held[0] & held[1] and len(held[0] | held[1]) == len(manifest)


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
    model = make_model("top")
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
    moved = copied(noisy, tmp_path / "moved", lambda wave: wave)
    assert moved.content_keys() == noisy.content_keys(), "the same audio elsewhere is the same"
    held = files(cache)
    CachedDataset(SpeechDataset(moved), make_model("l"), cache, 60)
    assert files(cache) == held


def test_normalisation_is_part_of_the_key_and_damage_is_a_message(tmp_path, manifest):  # noqa: F811
    model = SpeechAdapterModel(small_encoder("wavlm", "pre-norm"))
    stores = []
    for normalize in (False, True):
        model.encoder.normalize = normalize
        stores.append(CachedDataset(SpeechDataset(manifest), model, tmp_path, 60))
    assert not torch.equal(stores[0][0]["cached"], stores[1][0]["cached"])
    for file in tmp_path.rglob("*.bin"):
        file.write_bytes(bytes(file.stat().st_size))
    with pytest.raises(CheckpointError, match="this cache is damaged"):
        CachedDataset(SpeechDataset(manifest), model, tmp_path, 60)[0]


def test_caches_are_listed_and_cleared(tmp_path, manifest, monkeypatch):  # noqa: F811
    monkeypatch.setenv("SPEECH_ADAPTERS_CACHE", str(tmp_path))
    assert list_caches() == [] and clear_cache() == 0
    CachedDataset(SpeechDataset(manifest), make_model("l-frozen"), Cache(), 60)
    monkeypatch.setattr(cache_file, "code_version", lambda: "another version")
    CachedDataset(SpeechDataset(manifest), make_model("head-only"), Cache(precision="bf16"), 60)
    larger, smaller = list_caches()
    assert larger.about["encoder"] == "small-wavlm-pre-norm" and not larger.current and smaller.current
    assert larger.taps == {f"state-{layer}-fp16": 12 for layer in (1, 2, 3)} and smaller.taps == {"state-3-bf16": 12}
    assert larger.size == sum(file.stat().st_size for file in larger.path.rglob("*") if file.is_file()) > smaller.size
    assert clear_cache(stale_only=True) == larger.size and [entry.path for entry in list_caches()] == [smaller.path]
    assert clear_cache() == smaller.size and list_caches() == []


def test_damaged_caches_and_those_that_another_process_clears_are_no_hindrance(tmp_path, manifest, monkeypatch):  # noqa: F811
    for model in (make_model("head-only"), make_model("l-frozen")):
        CachedDataset(SpeechDataset(manifest), model, tmp_path, 60)
        next(tmp_path.rglob("*.npz")).write_bytes(b"half of a part")
        (entry,) = list_caches(tmp_path)
        assert set(entry.taps.values()) <= {12} and entry.size > 0
        seen = cache_file.folder_bytes

        def taken(path, seen=seen):  # as it is listed
            shutil.rmtree(path, ignore_errors=True)
            return seen(path)

        with monkeypatch.context() as patched:
            patched.setattr(cache_file, "folder_bytes", taken)
            assert clear_cache(tmp_path) == 0
        assert list_caches(tmp_path) == []
    CachedDataset(SpeechDataset(manifest), make_model("head-only"), tmp_path, 60)
    next(tmp_path.rglob("*.npz")).write_bytes(b"half of a part")
    assert clear_cache(tmp_path) > 0 and list(tmp_path.iterdir()) == []


def test_processes_share_the_filling_though_one_comes_late(tmp_path, manifest, monkeypatch):  # noqa: F811
    barrier, added, add = threading.Barrier(2), threading.Event(), cache_file.Activations.add
    own = threading.local()
    models = [make_model("head-only") for _ in range(2)]

    def share(number):
        own.state = SimpleNamespace(
            process_index=number, num_processes=2, is_main_process=not number,
            wait_for_everyone=lambda: barrier.wait(30), print=print,
        )  # fmt: skip
        if number:
            added.wait(1)  # the first one is done with its share
        return CachedDataset(SpeechDataset(manifest), models[number], tmp_path, 3)

    monkeypatch.setattr(cached_dataset, "processes", lambda: own.state)
    monkeypatch.setattr(cache_file.Activations, "add", lambda *arguments: (add(*arguments), added.set()))
    with ThreadPoolExecutor(2) as threads:
        made = list(threads.map(share, range(2)))
    assert all("cached" in one[place] for one in made for place in range(len(manifest)))


def test_a_clearing_that_was_killed_leaves_no_damage(tmp_path, manifest, monkeypatch):  # noqa: F811
    CachedDataset(SpeechDataset(manifest), make_model("head-only"), tmp_path, 60)
    with monkeypatch.context() as patched:

        def killed(folder, **_):
            next(folder.rglob("*.bin")).unlink()  # its index stays
            raise KeyboardInterrupt

        patched.setattr(cache_file.shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            clear_cache(tmp_path)
    assert list_caches(tmp_path) == []
    again = CachedDataset(SpeechDataset(manifest), make_model("head-only"), tmp_path, 60)
    assert "cached" in again[0]
    monkeypatch.setattr("speech_adapters.files._runs", lambda process: False)
    assert clear_cache(tmp_path) and list(tmp_path.iterdir()) == []


def test_layer_norms_that_train_are_pointed_out(tmp_path, manifest, capsys):  # noqa: F811
    CachedDataset(SpeechDataset(manifest), make_model("l"), tmp_path / "l", 60)
    assert "preset l-frozen" in capsys.readouterr().out
    CachedDataset(SpeechDataset(manifest), make_model("el"), tmp_path / "el", 60)
    assert "l-frozen" not in capsys.readouterr().out
