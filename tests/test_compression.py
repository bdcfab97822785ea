"""LoRA adapters compressed together: what is lost is what is said, and they are served in the form they lie in."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import batch, shake, small_model

from speech_adapters.adapters import LoRAXS
from speech_adapters.adapters.lora_xs import BASES
from speech_adapters.bank.bank import Bank
from speech_adapters.bank.compression import Compression, compress, lost_features
from speech_adapters.bank.joint_svd import Joint, compress_jointly
from speech_adapters.bank.transfer import export_bank, import_bank
from speech_adapters.cli import main
from speech_adapters.errors import CheckpointError, ConfigError
from speech_adapters.heads.ctc import CTCHead
from speech_adapters.model import SpeechAdapterModel
from speech_adapters.saving.parts import load_part, save_part


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def product_of(update: dict, name: str) -> torch.Tensor:
    b, a = update[name]
    return b @ a


def rebuilt(one: Joint, place: int, name: str) -> torch.Tensor:
    return one.up[name] @ one.cores[place][name] @ one.down[name]


def test_a_shared_basis_is_found_to_the_last_column() -> None:
    up, down = torch.linalg.qr(normal(0, 30, 5))[0], torch.linalg.qr(normal(1, 20, 5))[0].T
    updates = [{"p": (up @ normal(10 + i, 5, 3), normal(50 + i, 3, 5) @ down)} for i in range(12)]
    (one,) = compress_jointly(updates, 0.001)
    assert one.rank == 5 and one.members == list(range(12))
    for place, update in enumerate(updates):
        torch.testing.assert_close(rebuilt(one, place, "p"), product_of(update, "p"), atol=1e-4, rtol=1e-4)


def test_adapters_with_nothing_in_common_go_into_clusters() -> None:
    updates = []
    for cluster in range(2):
        b, a = normal(cluster, 40, 4), normal(9 + cluster, 4, 40)
        updates += [{"p": (b + 0.01 * normal(100 * cluster + i, 40, 4), a)} for i in range(2, 8)]
    found = compress_jointly(updates, 0.05)
    assert sorted(one.members for one in found) == [list(range(6)), list(range(6, 12))]
    assert all(one.rank == 4 for one in found)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 999), st.integers(2, 6), st.sampled_from([0.02, 0.1, 0.4]), st.booleans())
def test_none_loses_more_than_was_asked_and_errors_are_what_they_are(seed, count, target, alike) -> None:
    updates = []
    for i in range(count):
        rank, large = 1 + (seed + i) % 3, 10.0 ** (i % 4)  # one of large norm takes no basis for itself
        seeds = (seed, seed + 1) if alike else (seed + 2 * i, seed + 2 * i + 1)
        updates.append({
            name: (large * normal(seeds[0], 14, 3)[:, :rank] + 0.1 * large * normal(seed + i, 14, rank),
                   normal(seeds[1] + 7, 3, width)[:rank])
            for name, width in (("p", 10), ("q", 12))
        })  # fmt: skip
    found = compress_jointly(updates, target)
    assert sorted(i for one in found for i in one.members) == list(range(count))
    for one in found:
        for place, (member, error) in enumerate(zip(one.members, one.errors, strict=True)):
            lost = sum(float((product_of(updates[member], n) - rebuilt(one, place, n)).square().sum()) for n in "pq")
            whole = sum(float(product_of(updates[member], n).square().sum()) for n in "pq")
            assert (lost / whole) ** 0.5 == pytest.approx(error, abs=2e-3)
            assert error <= target + 1e-6


def test_what_spans_more_than_the_narrowest_projection_is_shared_by_fewer_or_by_none() -> None:
    updates = [
        {name: (normal(2 * i, width, 8), normal(2 * i + 1, 8, 16)) for name, width in (("p", 16), ("q", 64))}
        for i in range(20)
    ]
    found = compress_jointly(updates, 0.01, itemsize=2)
    assert max(error for one in found for error in one.errors) <= 0.01
    with pytest.raises(ConfigError, match="allow more"):
        compress_jointly(updates, 1e-7)


@pytest.fixture(scope="module")
def drawer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bank of twelve LoRA adapters, two trained ones as it were and ten close to them, each with its head."""
    folder = tmp_path_factory.mktemp("drawer")
    small_model("wavlm", "pre-norm").encoder.model.save_pretrained(folder / "encoder")
    model = SpeechAdapterModel.from_pretrained(folder / "encoder")
    bank = Bank.create(folder / "bank")
    for i in range(12):
        name = f"a{i}"
        model.add_adapter(name, "lora")
        model.add_head(name, CTCHead())
        model.train_adapter(name, head=name)
        with torch.no_grad():
            for place, tensor in enumerate(model.adapters[name].tensors().values()):
                own = normal(1000 * (i % 2) + place, *tensor.shape)
                tensor.copy_(0.3 * own + 0.003 * normal(77 * i + place, *tensor.shape))
        model.save_adapter(name, folder / name)
        model.save_head(name, folder / name)
        bank.add(folder / name, f"asr/{name}", domain="telephone")
        model.delete_adapter(name)
        model.delete_head(name)
    return folder


def base(drawer: Path) -> SpeechAdapterModel:
    return SpeechAdapterModel.from_pretrained(drawer / "encoder")


@pytest.fixture
def bank(drawer: Path, tmp_path: Path) -> Bank:
    """A copy to change."""
    shutil.copytree(drawer / "bank", tmp_path / "bank")
    return Bank(tmp_path / "bank")


@pytest.fixture(scope="module")
def done(drawer: Path) -> Compression:
    """All of them compressed, in a bank called ``small``."""
    shutil.copytree(drawer / "bank", drawer / "small")
    bank = Bank(drawer / "small")
    return compress(bank, bank.search(), base(drawer).encoder, 0.05)


@pytest.fixture
def small(done: Compression, drawer: Path, tmp_path: Path) -> Bank:
    """A copy of it to change."""
    shutil.copytree(drawer / "small", tmp_path / "small")
    return Bank(tmp_path / "small")


def test_compressed_adapters_are_small_close_and_loaded_as_they_lie(
    small: Bank, done: Compression, drawer: Path
) -> None:
    model = base(drawer)
    assert done.bytes_before / done.bytes_after > 4
    assert len(done.ranks) == 2 and max(one.error for one in done.adapters) <= 0.05
    assert max(lost_features(model, small, one, list(batch()[0])) for one in done.adapters) < 0.1
    first = done.adapters[0].after
    assert (first.number, first.tags, first.facts.method) == (2, ("compressed",), "lora-xs")
    assert first.facts.domain == "telephone" and first.facts.note == "compressed from asr/a0@1"
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the head knows the compressed adapter
        whole, less = (SpeechAdapterModel.from_adapter(small.path(f"asr/a0@{n}")) for n in (1, 2))
    with torch.no_grad():
        torch.testing.assert_close(less(*batch()).logits, whole(*batch()).logits, atol=0.05, rtol=0.05)
    assert small.verify() == []


def test_a_mixed_batch_shares_the_basis_and_gives_each_its_own(small: Bank, done: Compression, drawer: Path) -> None:
    model = base(drawer)
    names = [model.load_adapter(small.path(f"asr/a{i}@compressed"), name=f"c{i}") for i in (0, 2, 1)]
    parts = [next(iter(model.adapters[name].parts.values())) for name in names]
    assert parts[0].shared[0] is parts[1].shared[0]  # one in memory, however many adapters
    assert {key.rpartition(".")[2] for name in names for key in model.adapters[name].tensors()} == {"core"}
    assert not list(model.adapters[names[0]].named_buffers())
    waveform = batch()[0][:1]
    with torch.no_grad():
        mixed = model.eval()(waveform.repeat(3, 1), adapter=names).features
        for row, name in zip(mixed, names, strict=True):
            model.set_active(name)
            torch.testing.assert_close(row, model(waveform).features[0], atol=1e-4, rtol=1e-4)


def test_the_basis_goes_along_wherever_the_adapter_goes(small: Bank, drawer: Path, tmp_path: Path) -> None:
    waveforms = batch()
    with torch.no_grad():
        expected = SpeechAdapterModel.from_adapter(small.path("asr/a0@compressed"))(*waveforms).logits
    for found in small.search():
        if found.facts.method == "lora":
            small.remove(str(found))
    small.gc()
    small.copy("asr/a0@compressed", tmp_path / "copy")
    export_bank(small, small.search(), str(tmp_path / "out"))
    other = Bank.create(tmp_path / "other")
    import_bank(other, str(tmp_path / "out"), ["asr/a0"])
    again = Bank.create(tmp_path / "again")
    again.add(tmp_path / "copy", "asr/a0")
    model = SpeechAdapterModel.from_adapter(tmp_path / "copy")
    model.save_adapter("a0", tmp_path / "saved")
    for place in (tmp_path / "copy", other.path("asr/a0"), again.path("asr/a0"), tmp_path / "saved"):
        BASES.clear()
        loaded = base(drawer)
        loaded.load_adapter(place)
        loaded.load_head(tmp_path / "copy")
        with torch.no_grad():
            assert torch.equal(loaded.eval()(*waveforms).logits, expected), place
    assert small.verify() == other.verify() == again.verify() == []
    BASES.clear()
    (tmp_path / "copy" / "basis.json").unlink()
    with pytest.raises(CheckpointError, match="lie neither in it nor beside it"):
        base(drawer).load_adapter(tmp_path / "copy")
    (basis,) = small.find("asr/a0@compressed").version.needs
    weights = small.layout.object_folder(basis) / "basis_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert len(small.verify()) == 6  # every adapter that needs it
    with pytest.raises(CheckpointError, match="cut short or changed"):
        base(drawer).load_adapter(small.path("asr/a0@compressed"))


def test_what_is_lost_holds_as_stored(bank: Bank, drawer: Path) -> None:
    done = compress(bank, bank.search(), base(drawer).encoder, 0.009, dtype=torch.bfloat16)
    assert 0.008 < max(one.error for one in done.adapters) <= 0.009


def test_a_compressed_adapter_folds(small: Bank, done: Compression, drawer: Path) -> None:
    model = SpeechAdapterModel.from_adapter(small.path("asr/a0@compressed"))
    with torch.no_grad():
        before = model(*batch()).features
        model.fold_adapter("a0")
        torch.testing.assert_close(model(*batch()).features, before, atol=1e-4, rtol=1e-4)


def test_what_cannot_be_compressed_is_said_and_nothing_is_changed(bank: Bank, drawer: Path, tmp_path: Path) -> None:
    model = base(drawer)
    chosen = bank.search()
    with pytest.raises(ConfigError, match="compress two adapters or more"):
        compress(bank, chosen[:1], model.encoder, 0.05)
    with pytest.raises(ConfigError, match="give a share"):
        compress(bank, chosen, model.encoder, 5)
    with pytest.raises(ConfigError, match="float16 are rounded by up to 0.001"):
        compress(bank, chosen, model.encoder, 0.0005)
    for method, message in (("elp", "only plain and rank-stabilised"), (None, "acts on other projections")):
        from speech_adapters.adapters import LoRA

        model.add_adapter("x", method or LoRA(targets=("k_proj",)))
        model.save_adapter("x", tmp_path / str(method))
        found = bank.add(tmp_path / str(method), f"other/{method}")
        model.delete_adapter("x")
        with pytest.raises(ConfigError, match=message):
            compress(bank, [*chosen, found], model.encoder, 0.05)
    for i in range(2):
        model.add_adapter(f"r{i}", "lora")
        model.train_adapter(f"r{i}")
        with torch.no_grad():
            for place, tensor in enumerate(model.adapters[f"r{i}"].tensors().values()):
                tensor.copy_(normal(31 * i + place, *tensor.shape))
        model.save_adapter(f"r{i}", tmp_path / f"r{i}")
    strangers = [bank.add(tmp_path / f"r{i}", f"random/r{i}") for i in range(2)]
    with pytest.raises(ConfigError, match="nothing to gain"):
        compress(bank, strangers, model.encoder, 0.001, dtype=torch.float32)
    assert all(found.facts.method != "lora-xs" for found in bank.search(every=True))


def test_a_core_learns_around_the_singular_vectors_of_the_base() -> None:
    model = small_model("hubert", "post-norm")
    model.add_adapter("xs", LoRAXS(rank=6))
    part = model.adapters["xs"].parts["0_q_proj"]
    weight = model.encoder.part(0, "q_proj").weight
    left, values, right = torch.linalg.svd(weight.detach())
    best = left[:, :6] * values[:6] @ right[:6]
    torch.testing.assert_close(part.up @ part.down, best, atol=1e-4, rtol=1e-4)
    assert sum(p.numel() for p in model.adapters["xs"].parameters()) == 36 * len(model.adapters["xs"].parts)
    with pytest.raises(ConfigError, match="rank=65 is above"):
        model.add_adapter("more", LoRAXS(rank=65))
    with pytest.raises(ConfigError, match="have not been read"):
        model.add_adapter("shared", LoRAXS(rank=6, basis="ab" * 32))


def test_the_verb_says_what_was_lost(bank: Bank, drawer: Path, tmp_path: Path, capsys) -> None:
    from speech_adapters.data.audio import write_audio
    from speech_adapters.data.manifest import Manifest, Utterance

    write_audio(tmp_path / "u.wav", 0.1 * normal(0, 8000))
    Manifest([Utterance("u", tmp_path / "u.wav", 0.5, text="YES", speaker="s")], "test").write(tmp_path / "test.jsonl")
    arguments = ["bank", "compress", "--bank", str(bank.folder), "--manifest", str(tmp_path / "test.jsonl")]
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    said = "".join(capsys.readouterr())
    assert not ended.value.code, said
    assert said.count("of its norm") == 12 and said.count("WER") == 12
    assert "asr/a0@1 -> asr/a0@2: lost" in said and "times smaller" in said


def test_adapters_of_one_base_are_compressed_together_whenever_they_were_saved(
    bank: Bank, drawer: Path, tmp_path: Path, capsys
) -> None:
    """Older files hold another fingerprint of the same base, and less of its settings."""
    _, older = base(drawer).encoder.fingerprints
    for name in ("a0", "a2"):
        for kind in ("adapter", "head"):
            described, tensors = load_part(drawer / name, kind)
            whole = described if kind == "adapter" else described["features"]
            whole["base"] = {"name": whole["base"]["name"], "revision": None, "fingerprint": older}
            save_part(tmp_path / name, kind, described, tensors)
        bank.add(tmp_path / name, f"asr/old-{name}")
    with pytest.raises(SystemExit) as ended:
        main(["bank", "compress", "--bank", str(bank.folder)])
    said = "".join(capsys.readouterr())
    assert not ended.value.code and said.count("of its norm") == 14, said
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        whole, less = (SpeechAdapterModel.from_adapter(bank.path(f"asr/old-a0@{n}")) for n in (1, 2))
    with torch.no_grad():
        torch.testing.assert_close(less(*batch()).logits, whole(*batch()).logits, atol=0.05, rtol=0.05)

    small_model("wavlm", "post-norm").encoder.model.save_pretrained(tmp_path / "other")
    other = SpeechAdapterModel.from_pretrained(tmp_path / "other")
    other.add_adapter("x", "lora")
    bank.add(other.save_adapter("x", tmp_path / "x"), "other/x")
    for query, message in (
        (["--every"], "choose LoRA adapters of one base"),
        (["--task", "none"], "no LoRA adapters"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(["bank", "compress", "--bank", str(bank.folder), *query])
        assert ended.value.code == 2 and message in capsys.readouterr().err


def test_shaken_cores_are_alive() -> None:
    model = shake(small_model("wavlm", "pre-norm", "lora-xs"), 0.5)
    with torch.no_grad():
        active = model(*batch()).features
        model.set_active()
        assert not torch.allclose(active, model(*batch()).features)
