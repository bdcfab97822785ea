"""Banks: what is added comes back by name, version and tag; damage, strangers and clashes are said."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from bank_writer import keep
from hypothesis import given
from hypothesis import strategies as st
from small_models import batch, shake, small_model

from speech_adapters.bank.bank import Bank
from speech_adapters.bank.index import Index, Query, refresh
from speech_adapters.bank.transfer import export_bank, import_bank
from speech_adapters.cli import main
from speech_adapters.encoders import load_encoder
from speech_adapters.errors import CheckpointError, ConfigError, InputError
from speech_adapters.heads.ctc import CTCHead
from speech_adapters.locks import locked
from speech_adapters.model import SpeechAdapterModel
from speech_adapters.saving import bank_layout
from speech_adapters.saving.recent import Recent
from speech_adapters.serving.catalog import read_bank

WER = {"value": 0.2, "low": 0.1, "high": 0.3}


@pytest.fixture
def bank(tmp_path: Path) -> Bank:
    return Bank.create(tmp_path / "bank")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder, and an adapter with its head in the layout of a run."""
    folder = tmp_path_factory.mktemp("saved")
    small_model("wavlm", "pre-norm").encoder.model.save_pretrained(folder / "encoder")
    model = SpeechAdapterModel.from_pretrained(folder / "encoder")
    for name in ("one", "two"):
        torch.manual_seed(ord(name[0]))
        model.add_adapter(name, "lora")
        model.add_head(name, CTCHead())
        model.train_adapter(name, head=name)
        shake(model, 0.1)
        model.save_adapter(name, folder / "run" / "adapters" / name, wer=WER, domain="telephone")
        model.save_head(name, folder / "run" / "heads" / name)
    return folder


def test_a_model_loads_from_the_bank_what_was_saved(bank: Bank, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = bank.add(saved / "run" / "adapters" / "one", "client-a/asr", language="en", tags=("candidate",))
    assert (found.name, found.number, found.tags) == ("client-a/asr", 1, ("candidate",))
    assert found.facts.method == "lora" and found.facts.head == "ctc" and found.facts.task == "asr"
    assert found.facts.domain == "telephone" and found.facts.language == "en" and found.facts.metrics == {"wer": WER}
    bank.promote("client-a/asr")
    monkeypatch.setenv(bank_layout.ENVIRONMENT, str(bank.folder))
    waveforms, lengths = batch()
    outputs = []
    for place in (saved / "run" / "adapters" / "one", "bank:client-a/asr@production"):
        with torch.no_grad():
            outputs.append(SpeechAdapterModel.from_adapter(place)(waveforms, lengths).logits)
    assert torch.equal(*outputs)
    model = SpeechAdapterModel.from_pretrained(saved / "encoder")
    assert model.load_adapter("bank:client-a/asr@candidate") == "one"
    assert model.load_head("bank:client-a/asr@1") == "one"
    for source in ("adapter.json", "adapter_model.safetensors", "adapter_config.json"):
        assert (bank.path("client-a/asr") / source).read_bytes() == (saved / "run/adapters/one" / source).read_bytes()


def test_another_base_is_refused(bank: Bank, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bank.add(saved / "run" / "adapters" / "one", "asr")
    monkeypatch.setenv(bank_layout.ENVIRONMENT, str(bank.folder))
    with pytest.raises(CheckpointError, match="whose frozen weights are not those"):
        small_model("hubert", "pre-norm").load_adapter("bank:asr")


def test_a_base_that_computes_something_else_is_refused_from_memory_too(bank: Bank, saved: Path, caplog) -> None:
    bank.add(saved / "run" / "adapters" / "one", "asr")
    encoder, changed = (load_encoder(saved / "encoder") for _ in range(2))
    changed.model.config.layer_norm_eps = 1e-3
    assert changed.fingerprint == encoder.fingerprint
    bank.read_adapter("asr", encoder)
    with pytest.raises(CheckpointError, match="config.json said layer_norm_eps="):
        bank.read_adapter("asr", changed)
    with pytest.raises(CheckpointError, match="nothing in this bank is for"):
        list(read_bank(bank, changed))
    assert "layer_norm_eps" in caplog.text
    path = bank.path("asr") / "adapter.json"
    for damage in ("{", "[]", '{"base": {"odd": 1}}'):
        path.write_text(damage)
        with pytest.raises(CheckpointError, match="adapter.json"):
            list(read_bank(bank, encoder))


def test_fusions_are_kept_and_loaded(bank: Bank, saved: Path, tmp_path: Path, monkeypatch) -> None:
    from speech_adapters.composition import Route

    model = SpeechAdapterModel.from_pretrained(saved / "encoder")
    for name in ("one", "two"):
        model.load_adapter(saved / "run" / "adapters" / name)
    model.add_fusion(Route("one", "two", name="both"))
    model.save_fusion("both", tmp_path / "both")
    found = bank.add(tmp_path / "both", "client-a/both")
    assert (found.facts.kind, found.facts.method) == ("fusion", "route")
    monkeypatch.setenv(bank_layout.ENVIRONMENT, str(bank.folder))
    model.delete_fusion("both")
    assert model.load_fusion("bank:client-a/both") == "both"


def test_what_is_there_is_not_added_twice_and_numbers_are_not_given_again(bank: Bank) -> None:
    assert [keep(bank, "a", content).number for content in (b"1", b"2", b"1", b"3")] == [1, 2, 1, 3]
    assert keep(bank, "a", b"1", domain="studio").number == 4  # the same files, said to be something else
    assert len(list((bank.folder / "objects").iterdir())) == 3
    bank.remove("a@4")
    bank.remove("a@3")
    assert keep(bank, "a", b"4").number == 5
    assert bank.remove("a") == [1, 2, 5]
    with pytest.raises(CheckpointError, match="all its versions were removed"):
        bank.find("a")
    assert keep(bank, "a", b"5").number == 6


def test_tags_move_and_promotions_are_taken_back(bank: Bank) -> None:
    for content in (b"1", b"2"):
        keep(bank, "a", content)
    bank.promote("a@1")
    assert bank.promote("a@2").tags == ("production",)
    assert bank.find("a@previous").number == 1
    assert bank.promote("a@previous").number == 1 and bank.find("a@previous").number == 2
    with pytest.raises(ConfigError, match=r"tag 'production' points at a@1.*bank tag a production --delete"):
        bank.remove("a@1")
    bank.untag("a", "production")
    assert bank.remove("a@1") == [1]
    with pytest.raises(CheckpointError, match=r"a@1: no such version or tag; there are 2, previous"):
        bank.find("a@1")
    with pytest.raises(CheckpointError, match=r"there is no 'aa'; did you mean 'a'\?"):
        bank.find("aa")


def test_a_broken_object_is_found_not_promoted_and_mended_by_adding_it_again(bank: Bank) -> None:
    keep(bank, "a", b"1")
    file = bank.path("a") / "adapter.json"
    file.write_bytes(b"2")
    assert [fault.partition(":")[0] for fault in bank.verify()] == ["a@1"]
    with pytest.raises(CheckpointError, match="not promoted"):
        bank.promote("a")
    keep(bank, "a", b"1")
    assert file.read_bytes() == b"1" and bank.verify() == []
    shutil.rmtree(bank.path("a"))
    assert "cannot be read" in bank.verify()[0]
    with pytest.raises(CheckpointError, match=r"its files \(.*\) are gone"):
        bank.path("a")


def test_a_damaged_part_is_not_added(bank: Bank, saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved / "run" / "adapters" / "one", tmp_path / "one")
    weights = tmp_path / "one" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="cut short or changed"):
        bank.add(tmp_path / "one", "a")
    with pytest.raises(CheckpointError, match="no such folder"):
        bank.add(tmp_path / "none", "a")
    with pytest.raises(ConfigError, match="unknown label 'colour'; there are task"):
        bank.add(saved / "run" / "adapters" / "one", "a", colour="red")
    assert bank.layout.names() == []


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../a", "/a", "a/../b", "a//b", "a\\b", "a.json", "a/b/c/d/e", "a\0", "ä", "a@b@c", "-a"]
)
def test_names_never_leave_the_folder(bank: Bank, name: str) -> None:
    with pytest.raises(ConfigError):
        bank.path(name)
    with pytest.raises(ConfigError):
        keep(bank, name, b"1")


@given(st.text(max_size=40))
def test_any_text_is_a_reference_within_the_bank_or_an_error(text: str) -> None:
    try:
        reference = bank_layout.Reference.parse(text)
    except ConfigError:
        return
    assert ".." not in reference.name and not Path(reference.name).is_absolute()
    assert str(bank_layout.Reference.parse(str(reference))) == str(reference)


def test_gc_frees_what_no_version_names_and_nothing_else(bank: Bank) -> None:
    keep(bank, "a", b"1")
    keep(bank, "a", b"2")
    bank.remove("a@1")
    left = bank.folder / "objects" / f".{'0' * 64}.999999999.tmp"
    left.mkdir()
    assert bank.gc(dry_run=True)[0] == 1 and left.exists()
    assert bank.gc()[0] == 1 and not left.exists()
    assert bank.verify() == [] and bank.gc() == (0, 0)
    bank.layout.entry_file("a").write_text("{}")
    with pytest.raises(CheckpointError, match="Nothing was removed"):
        bank.gc()


def age(bank: Bank, seconds: int = 100) -> None:
    """Make all files look older."""
    for number, file in enumerate(sorted(bank.folder.rglob("*.json"))):
        then = file.stat().st_mtime_ns - seconds * 10**9 - number
        os.utime(file, ns=(then, then))


def test_the_index_is_the_entries_however_damaged_or_old(bank: Bank) -> None:
    for name in ("a", "b", "c/d"):
        keep(bank, name, name.encode())
    age(bank)
    refresh(bank.layout)
    index = bank.folder / "index.json"
    assert set(json.loads(index.read_text())["entries"]) == {"a", "b", "c/d"}
    whole, expected = index.read_text(), bank.index().entries
    bank.layout.entry_file("a").unlink()
    keep(bank, "b", b"more")
    for text in (whole, "", whole[:-20], whole.replace("lora", "elp"), "{}", "[]"):
        index.write_text(text)
        entries = bank.index().entries
        assert set(entries) == {"b", "c/d"} and entries["c/d"] == expected["c/d"]
        assert entries["b"].numbers == [1, 2]
    index.unlink()
    assert set(bank.index().entries) == {"b", "c/d"}


def test_a_reader_takes_what_the_index_says_only_of_unchanged_files(bank: Bank) -> None:
    keep(bank, "a", b"1")
    refresh(bank.layout)  # as young as its entry: not to be trusted
    assert json.loads((bank.folder / "index.json").read_text())["entries"] == {}
    age(bank)
    refresh(bank.layout)
    bank.tag("a", "tested")
    assert Index.read(bank.layout).entries["a"].tags == {"tested": 1}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda entry: entry | {"tags": {"x": 9}}, "point at no version"),
        (lambda entry: entry | {"last": 0}, "are not numbers from 1 to 0"),
        (lambda entry: entry | {"more": 1}, "unknown key 'more'"),
        (lambda entry: entry | {"versions": {"1": entry["versions"]["1"] | {"object": "../../x"}}}, "not a SHA-256"),
    ],
)
def test_what_an_entry_cannot_say_is_named(bank: Bank, change, message: str) -> None:
    keep(bank, "a", b"1")
    keep(bank, "b", b"1")
    file = bank.layout.entry_file("a")
    bank_layout.write_sealed(file, change(bank_layout.read_sealed(file)))
    with pytest.raises(CheckpointError, match=message):
        bank.find("a")
    assert list(bank.index().entries) == ["b"] and len(bank.verify()) == 1


QUERIES = [
    (Query(), "asr@1 asr@2 emotion@1 emotion@3"),
    (Query(task="asr"), "asr@1 asr@2"),
    (Query(words=["TELE"]), "asr@1"),
    (Query(words=["asr", "studio"]), "asr@2"),
    (Query(metrics=["wer<0.2"]), "asr@2"),
    (Query(metrics=["wer>=0.1", "wer<=0.2"]), "asr@1 asr@2"),
    (Query(method="elp"), "emotion@1 emotion@3"),
    (Query(tag="tested"), "asr@1"),
    (Query(base="ab"), "asr@1 asr@2 emotion@1 emotion@3"),
    (Query(base="cd"), ""),
    (Query(name="client"), "emotion@1 emotion@3"),
    (Query(since="2026-02"), ""),
    (Query(until="2026-01-30"), ""),
    (Query(since="2026-01-31", until="2026-01-31"), "asr@1 asr@2 emotion@1 emotion@3"),
]


def test_searches(bank: Bank) -> None:
    keep(bank, "asr", b"1", task="asr", domain="telephone", metrics={"wer": WER})
    keep(bank, "asr", b"2", task="asr", domain="studio", metrics={"wer": WER | {"value": 0.1}})
    bank.tag("asr@1", "tested")
    for content in (b"1", b"2", b"3"):
        keep(bank, "client/emotion", content, task="emotion", method="elp", metrics={"ua": WER})
    bank.tag("client/emotion@1", "first")
    for query, expected in QUERIES:
        assert " ".join(str(found).rpartition("/")[2] for found in bank.search(query)) == expected, query
    assert len(bank.search(every=True)) == 5
    with pytest.raises(ConfigError, match=r"'wer<20': rates are fractions, .*write wer<0.2 for 20 %"):
        Query(metrics=["wer<20"])
    assert Query(metrics=["min_cllr<1.5", "min_dcf_0.01<0.3"]).metrics
    for wrong in ({"metrics": ["wer"]}, {"metrics": ["wer<a"]}, {"since": "yesterday"}):
        with pytest.raises(ConfigError):
            Query(**wrong)


@pytest.mark.parametrize("address", ["folder", "memory"])
def test_exports_are_banks_and_imports_add_what_is_new(bank: Bank, tmp_path: Path, address: str) -> None:
    place = str(tmp_path / "out") if address == "folder" else f"memory://{tmp_path.name}"
    for content in (b"1", b"2"):
        keep(bank, "client/a", content)
    keep(bank, "b", b"3")
    bank.promote("client/a@1")
    assert export_bank(bank, bank.search(Query(name="client"), every=True), place) == 2
    with pytest.raises(ConfigError, match="something is there already"):
        export_bank(bank, bank.search(), place)
    other = Bank.create(tmp_path / "other")
    keep(other, "client/a", b"9")
    assert [str(found) for found in import_bank(other, place)] == ["client/a@2", "client/a@3"]
    assert other.find("client/a@production").number == 2
    assert other.path("client/a@2").name == bank.path("client/a@1").name
    assert import_bank(other, place) == []
    with pytest.raises(ConfigError, match="there is no 'b'"):
        import_bank(other, place, ["b"])
    if address == "folder":
        assert Bank(place).verify() == [] and Bank(place).find("client/a@production").number == 1
    with pytest.raises(CheckpointError, match=r"bank.json: no such file"):
        import_bank(other, str(tmp_path / "nowhere"))


def test_a_disk_that_fills_up_behind_a_change_does_not_call_it_failed(bank: Bank, monkeypatch) -> None:
    def full(file: Path, _: object) -> None:
        raise InputError(f"{file}: cannot be written (No space left on device)")

    keep(bank, "a", b"1")
    os.utime(bank.folder / "index.json", (0, 0))
    monkeypatch.setattr("speech_adapters.bank.index.write_sealed", full)
    assert bank.remove("a@1") == [1]


def test_an_import_leaves_the_tags_that_another_process_sets_meanwhile(
    bank: Bank, tmp_path: Path, monkeypatch
) -> None:
    keep(bank, "a", b"1")
    bank.promote("a")
    export_bank(bank, bank.search(), str(tmp_path / "out"))
    other = Bank.create(tmp_path / "other")
    own, kept = keep(other, "a", b"2"), other.keep

    def late(*arguments, **options):
        """The other process promotes its version between the look at the tags and the change."""
        Bank(other.folder).promote(str(own))
        return kept(*arguments, **options)

    monkeypatch.setattr(other, "keep", late)
    assert [str(found) for found in import_bank(other, str(tmp_path / "out"))] == ["a@2"]
    assert other.find("a@production").number == 1 and "previous" not in other.index().entries["a"].tags


def test_a_restored_bank_has_the_numbers_of_the_one_that_was_exported(bank: Bank, tmp_path: Path) -> None:
    for content in (b"1", b"2", b"3", b"4"):
        keep(bank, "a", content)
    bank.remove("a@1")
    bank.remove("a@3")
    export_bank(bank, bank.search(every=True), str(tmp_path / "first"))
    restored = Bank.create(tmp_path / "restored")
    import_bank(restored, str(tmp_path / "first"))
    assert restored.index().entries["a"].numbers == [2, 4] and restored.path("a@2").name == bank.path("a@2").name
    bank.promote("a@2")  # a tag of what is there already comes along, too
    export_bank(bank, bank.search(every=True), str(tmp_path / "second"))
    assert [str(found) for found in import_bank(restored, str(tmp_path / "second"))] == ["a@2"]
    assert restored.find("a@production").number == 2 and keep(restored, "a", b"5").number == 5
    assert import_bank(restored, str(tmp_path / "second")) == []


def test_imports_refuse_what_was_changed_and_what_is_no_part(bank: Bank, tmp_path: Path) -> None:
    keep(bank, "a", b"1")
    export_bank(bank, bank.search(), str(tmp_path / "out"))
    other, (folder,) = Bank.create(tmp_path / "other"), (tmp_path / "out" / "objects").iterdir()
    (folder / "weights.pkl").write_bytes(b"cos\nsystem\n")
    with pytest.raises(CheckpointError, match=r"holds 'weights.pkl', which no saved part has"):
        import_bank(other, str(tmp_path / "out"))
    (folder / "weights.pkl").unlink()
    (folder / "adapter.json").write_bytes(b"2")
    with pytest.raises(CheckpointError, match="not those that were added"):
        import_bank(other, str(tmp_path / "out"))
    entry = tmp_path / "out" / "entries" / "a.json"
    entry.write_text(entry.read_text().replace("lora", "elp"))
    with pytest.raises(CheckpointError, match="cut short or changed"):
        import_bank(other, str(tmp_path / "out"))
    assert other.layout.names() == []


def test_adapters_are_read_once_while_they_fit_the_budget(bank: Bank, saved: Path) -> None:
    for name in ("one", "two"):
        bank.add(saved / "run" / "adapters" / name, name)
    encoder = SpeechAdapterModel.from_pretrained(saved / "encoder").encoder
    first = bank.read_adapter("one", encoder)
    assert bank.read_adapter("one@1", encoder) is first
    size = sum(tensor.numel() * tensor.element_size() for tensor in first.tensors.values())
    small = Bank(bank.folder, budget=size)
    first = small.read_adapter("one", encoder)
    small.read_adapter("two", encoder)
    assert small.read_adapter("one", encoder) is not first


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 12)), max_size=40), st.integers(0, 20))
def test_the_least_recently_used_make_room(uses: list[tuple[str, int]], budget: int) -> None:
    recent, model = Recent[str](budget), []  # the model: (key, size), the latest used last
    for key, size in uses:
        known = next((entry for entry in model if entry[0] == key), None)
        assert recent.get(key) == (None if known is None else key)
        if known is not None:
            model.remove(known)
            model.append(known)
        else:
            recent.put(key, key, size)
            if size <= budget:
                model.append((key, size))
            while sum(size for _, size in model) > budget:
                model.pop(0)
        assert list(recent) == [key for key, _ in model] and recent.bytes == sum(size for _, size in model)


def test_a_lock_is_waited_for_and_then_given_up(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(InputError, match="another process has been writing"), locked(tmp_path, 0.05):
        pass
    with locked(tmp_path, 0.05):
        pass


def test_no_bank_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(bank_layout.ENVIRONMENT, raising=False)
    with pytest.raises(ConfigError, match="Set SPEECH_ADAPTERS_BANK"):
        small_model().load_adapter("bank:a")
    with pytest.raises(ConfigError, match=r"no bank there; make one with: speech-adapters bank init"):
        Bank(tmp_path)
    Bank.create(tmp_path / "bank")
    (tmp_path / "bank" / "bank.json").write_text('{"format": 2}')
    with pytest.raises(CheckpointError, match="format 2 is newer"):
        Bank(tmp_path / "bank")


def test_an_export_says_what_it_leaves_out(saved: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv(bank_layout.ENVIRONMENT, str(tmp_path / "drawer"))
    one = str(saved / "run/adapters/one")
    commands = [["init", str(tmp_path / "drawer")]]
    commands += [["add", one, "--name", "asr", "--language", language] for language in ("en", "de", "fr")]
    commands += [["export", str(tmp_path / "some")], ["export", str(tmp_path / "all"), "--every"]]
    said = []
    for command in commands:
        with pytest.raises(SystemExit, match="0"):
            main(["bank", *command])
        said.append(capsys.readouterr())
    assert said[-2].err.strip() == "left out: 2 older versions without a tag; --every takes them along"
    assert ": 1 version, " in said[-2].out and ": 3 versions, " in said[-1].out and not said[-1].err

    with pytest.raises(SystemExit, match="0"):
        main(["bank", "add", one, "--name", "other"])
    (tmp_path / "drawer" / "entries" / "other.json").write_text("{")
    capsys.readouterr()
    for command, code in ((["export", str(tmp_path / "rest")], 1), (["compress", "--method", "elp"], 2)):
        with pytest.raises(SystemExit, match=str(code)):
            main(["bank", *command])
        shown = capsys.readouterr()
        assert f"left out: {tmp_path / 'drawer' / 'entries' / 'other.json'}:1: not JSON" in shown.err
    assert (tmp_path / "rest" / "entries" / "asr.json").is_file()


def test_the_verbs_from_init_to_gc(saved: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv(bank_layout.ENVIRONMENT, str(tmp_path / "drawer"))
    monkeypatch.chdir(tmp_path)

    def verb(*words: str, code: int | None = None) -> str:
        with pytest.raises(SystemExit) as ended:
            main(["bank", *words])
        said = "".join(capsys.readouterr())
        assert (ended.value.code or 0) == (code or 0), said
        return said

    verb("init", "drawer")
    assert verb("list") == "no versions\n"
    said = verb("add", str(saved / "run/adapters/one"), "--name", "client-a/asr", "--language", "en", "--tag", "new")
    assert "bank:client-a/asr@1" in said
    assert "is production  wer 0.200 [0.100, 0.300]" in verb("promote", "client-a/asr@new")
    assert "client-a/asr@1  new,production" in verb("search", "--language", "en", "--metric", "wer<0.3")
    verb("search", "--language", "de", code=1)
    assert json.loads(verb("list", "--json"))["method"] == "lora"
    verb("get", "client-a/asr@production", "--output", "copy")
    assert (tmp_path / "copy" / "head.json").is_file()
    assert "1 version, no faults" in verb("verify")
    verb("export", "backup", "--tag", "production")
    assert "error: client-a/asr@1: the tag" in verb("rm", "client-a/asr@1", code=2)
    for tag in ("new", "production"):
        verb("tag", "client-a/asr", tag, "--delete")
    assert verb("rm", "client-a/asr@1") == "removed client-a/asr@1\n"
    assert verb("gc").startswith("1 object, ")
    assert verb("import", "backup").endswith("1 version new or newly tagged\n")
    verb("add", str(saved / "run/adapters/one"), "--name", "client-b/asr")
    verb("add", str(saved / "run/adapters/two"), "--name", "client-b/asr")
    verb("promote", "client-b/asr@1")
    assert "client-b/asr@1 is previous  wer 0.200 [0.100, 0.300]\n" in verb("promote", "client-b/asr@2")
