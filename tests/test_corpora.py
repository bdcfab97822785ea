"""The demo corpus (plan, bytes, cache, committed manifests) and LibriSpeech (download, unpacking, manifests)."""

from __future__ import annotations

import hashlib
import http.server
import io
import json
import re
import shutil
import tarfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import soundfile
import torch

from speech_adapters import corpora
from speech_adapters.corpora import demo, download, espeak, librispeech
from speech_adapters.corpora.demo import DemoCorpus, build_demo, prepare_demo
from speech_adapters.corpora.demo_plan import SPLITS, VARIANTS, plan_demo, read_sentences, transcript
from speech_adapters.corpora.librispeech import download_librispeech, prepare_librispeech
from speech_adapters.data.audio import read_audio
from speech_adapters.data.manifest import Manifest, check_disjoint
from speech_adapters.data.trials import read_trials
from speech_adapters.errors import InputError, ManifestError

COMMITTED = Path(__file__).parents[1] / "manifests"


def test_registry_offers_every_name():
    for name in corpora.__all__:
        assert getattr(corpora, name) is not None
    with pytest.raises(AttributeError, match="prepare_nothing"):
        _ = corpora.prepare_nothing


# The demo corpus: its plan


def test_plan_is_large_balanced_and_disjoint():
    plan = plan_demo()
    assert len({p.speaker for p in plan}) >= 60
    assert len({p.id for p in plan}) == len(plan)
    assert sum(len(lines) for lines in read_sentences().values()) >= 300
    voices = [set(VARIANTS[split].split()) for split in SPLITS]
    texts = [{transcript(p.spoken.text) for p in plan if p.split == split} for split in SPLITS]
    for sets in (voices, texts):
        assert not (sets[0] & sets[1] or sets[0] & sets[2] or sets[1] & sets[2])
    for speaker in {p.speaker for p in plan}:
        own = [p for p in plan if p.speaker == speaker]
        assert len(set(Counter((p.emotion, p.domain) for p in own).values())) == 1, "styles x domains are balanced"
        assert len({p.spoken.text for p in own}) == len(own), "nobody says a sentence twice"
    assert plan == plan_demo()


def test_sentences_are_short_and_their_words_can_be_learnt():
    words = {split: set() for split in SPLITS}
    for split, sentences in read_sentences().items():
        for sentence in sentences:
            text = transcript(sentence)
            assert re.fullmatch(r"[A-Z']+( [A-Z']+){2,7}", text), text
            words[split] |= set(text.split())
    assert words["dev"] | words["test"] <= words["train"]
    assert len(words["train"]) < 500


# The demo corpus: its sound


@pytest.fixture(scope="module")
def small_build(tmp_path_factory: pytest.TempPathFactory) -> DemoCorpus:
    """The first 24 utterances of the full plan."""
    corpus = DemoCorpus(tmp_path_factory.mktemp("demo"))
    build_demo(corpus.root, limit=24)
    return corpus


def test_same_bytes_every_time(small_build: DemoCorpus, tmp_path: Path):
    threads = torch.get_num_threads()
    torch.set_num_threads(2 if threads == 1 else 1)
    try:
        build_demo(tmp_path, limit=24)
        again = json.loads((tmp_path / "complete.json").read_text())
    finally:
        torch.set_num_threads(threads)
    assert again == json.loads(small_build.marker.read_text())


def test_breathy_voices_repeat_too():
    jobs = [espeak.Spoken("Please hold the line.", f"en-us+{voice}") for voice in ("f2", "f2", "Alicia", "m1")]
    first, again = ([samples for _, samples in espeak.synthesize(jobs)] for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0], first[1]), "state goes on within a process: why each list has a fresh one"


def test_committed_manifest_is_what_is_built(small_build: DemoCorpus):
    committed = {u.id: u for u in Manifest.read(COMMITTED / "demo_train.jsonl")}
    for built in Manifest.read(small_build.train, require=("text", "speaker", "emotion", "domain"), check_files=True):
        line = committed[built.id]
        assert (built.duration, built.text, built.extra) == (line.duration, line.text, line.extra)


def test_domains_sound_as_they_are_called(small_build: DemoCorpus):
    high, floor = {}, {}
    for utterance in Manifest.read(small_build.train):
        waveform = read_audio(utterance.audio_filepath)
        assert 0.02 < waveform.abs().max() <= 1
        spectrum = torch.fft.rfft(waveform).abs().square()
        share = float(spectrum[len(spectrum) // 2 :].sum() / spectrum.sum())  # above 4 kHz
        high.setdefault(utterance.domain, []).append(share)
        floor.setdefault(utterance.domain, []).append(float(waveform[:1200].abs().mean()))
    assert max(high["telephone"]) < 1e-4 < min(high["studio"])
    assert max(floor["studio"]) < 1e-3 < min(floor["noisy"])


@pytest.mark.slow
def test_full_build_equals_the_committed_manifests():
    corpus = prepare_demo()  # in the shared cache: built once, under 90 s
    for name in [*(f"demo_{split}.jsonl" for split in SPLITS), "demo_dev_trials.txt", "demo_test_trials.txt"]:
        assert (corpus.root / name).read_text("utf-8") == (COMMITTED / name).read_text("utf-8"), (
            f"{name} differs from manifests/{name}; see manifests/README.md on how to renew it"
        )
    manifests = [Manifest.read(corpus.manifest(split), check_files=True) for split in SPLITS]
    for first, second in ((0, 1), (0, 2), (1, 2)):
        check_disjoint(manifests[first], manifests[second], "speaker")
        check_disjoint(manifests[first], manifests[second], "text")
    assert manifests[0].hours * 60 > 55 and manifests[1].hours * 60 > 5 and manifests[2].hours * 60 > 8
    for split in ("dev", "test"):
        trials = read_trials(corpus.trials(split))
        speaker = {f"{split}/{u.audio_filepath.name}": u.speaker for u in Manifest.read(corpus.manifest(split))}
        gender = {f"{split}/{u.audio_filepath.name}": u.extra["gender"] for u in Manifest.read(corpus.manifest(split))}
        for trial in trials:
            assert (speaker[trial.enrol] == speaker[trial.test]) == bool(trial.label)
            assert gender[trial.enrol] == gender[trial.test] and (corpus.audio / trial.test).exists()


# The demo corpus: its cache


@pytest.fixture
def tiny_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = [p for split in SPLITS for p in [p for p in plan_demo() if p.split == split][22:26]]
    monkeypatch.setattr(demo, "plan_demo", lambda: plan)


def test_cache(tiny_plan: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SPEECH_ADAPTERS_CACHE", str(tmp_path / "cache"))
    corpus = prepare_demo()
    assert corpus.root == demo.demo_root() == tmp_path / "cache" / "demo-v1"
    assert len(Manifest.read(corpus.test, check_files=True)) == 4
    assert not list((tmp_path / "cache").glob(".demo-v1*")), "nothing half-built is left"
    built = corpus.marker.stat().st_mtime_ns
    assert prepare_demo() == corpus and corpus.marker.stat().st_mtime_ns == built, "found, not built again"
    next((corpus.audio / "dev").iterdir()).unlink()
    prepare_demo()
    assert len(list((corpus.audio / "dev").iterdir())) == 4, "a damaged cache is mended"
    corpus.marker.write_text('{"fingerprint": "of an older version"}')
    prepare_demo()
    assert len(json.loads(corpus.marker.read_text())["fingerprint"]) == 64


def test_the_demo_is_built_once_and_replaced_in_one_step(tiny_plan: None, tmp_path: Path, monkeypatch):
    build, remove, built = demo.build_demo, shutil.rmtree, []

    def slowly(root: Path) -> None:
        built.append(root)
        time.sleep(0.5)
        build(root)

    monkeypatch.setattr(demo, "build_demo", slowly)
    with ThreadPoolExecutor(2) as threads:
        corpus, other = threads.map(prepare_demo, [tmp_path / "demo"] * 2)
    assert corpus == other and len(built) == 1, "the second waits for the first"

    def killed(folder: Path, **options: bool) -> None:
        if (Path(folder) / "complete.json").exists():
            (Path(folder) / "complete.json").unlink()
            raise KeyboardInterrupt
        remove(folder, **options)

    corpus.marker.write_text('{"fingerprint": "of an older version"}')
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            prepare_demo(tmp_path / "demo")
    assert len(Manifest.read(prepare_demo(tmp_path / "demo").test, check_files=True)) == 4


def test_a_failed_build_leaves_nothing(tiny_plan: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(demo, "BABBLERS", ("no-such-voice",))
    with pytest.raises(InputError, match="demo corpus: eSpeak NG stopped: .*'en-us\\+no-such-voice'.*pip install"):
        prepare_demo(tmp_path / "demo")
    assert not list(tmp_path.iterdir())


def test_other_files_are_not_overwritten(tmp_path: Path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="holds files that are not the demo corpus"):
        prepare_demo(tmp_path)
    assert (tmp_path / "thesis.txt").exists()
    with pytest.raises(InputError, match="cannot be written .*SPEECH_ADAPTERS_CACHE"):
        prepare_demo(tmp_path / "thesis.txt" / "demo")
    with pytest.raises(InputError, match="cannot be written .*SPEECH_ADAPTERS_CACHE"):
        prepare_demo(tmp_path / ("a" * 250))  # its folder is there, and takes no file of it


# LibriSpeech

TEXTS = {
    "dev-clean": {"84-121123-0000": "GO DO YOU HEAR", "84-121123-0001": "BUT IN LESS THAN FIVE MINUTES"},
    "test-clean": {"1089-134686-0000": "HE HOPED THERE WOULD BE STEW"},
}


def make_tree(root: Path, subset: str) -> Path:
    """One subset in the exact layout of the corpus."""
    for identity, text in TEXTS[subset].items():
        speaker, chapter, _ = identity.split("-")
        folder = root / "LibriSpeech" / subset / speaker / chapter
        folder.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(len(text)).uniform(-0.1, 0.1, 800 * len(text))
        soundfile.write(folder / f"{identity}.flac", noise, 16_000)
        with (folder / f"{speaker}-{chapter}.trans.txt").open("a") as file:
            file.write(f"{identity} {text}\n")
    speakers = ";ID  |SEX| SUBSET           |MINUTES| NAME\n84   | F | dev-clean        |  8.02 | Christie Nowak\n"
    (root / "LibriSpeech" / "SPEAKERS.TXT").write_text(speakers)
    return root


def test_librispeech_manifests(tmp_path: Path):
    root = make_tree(make_tree(tmp_path / "corpora", "dev-clean"), "test-clean")
    paths = prepare_librispeech(root, tmp_path / "manifests")
    assert {subset: path.name for subset, path in paths.items()} == {
        "dev-clean": "librispeech_dev-clean.jsonl",
        "test-clean": "librispeech_test-clean.jsonl",
    }
    dev = Manifest.read(paths["dev-clean"], require=("text", "speaker"), check_files=True)
    assert [u.id for u in dev] == list(TEXTS["dev-clean"])
    assert [u.text for u in dev] == list(TEXTS["dev-clean"].values())
    assert dev[0].duration == 800 * len("GO DO YOU HEAR") / 16_000
    assert dev[0].speaker == "84" and dev[0].extra == {"gender": "F"} and dev[0].lang == "en"
    inner = prepare_librispeech(root / "LibriSpeech", tmp_path / "other", ["test-clean"])
    assert Manifest.read(inner["test-clean"]) == Manifest.read(paths["test-clean"])


def test_librispeech_bad_trees(tmp_path: Path):
    with pytest.raises(InputError, match="no LibriSpeech there .*download_librispeech.*openslr"):
        prepare_librispeech(tmp_path, tmp_path)
    root = make_tree(tmp_path, "dev-clean")
    with pytest.raises(InputError, match="subset 'test-clean' is not there; use some of dev-clean"):
        prepare_librispeech(root, tmp_path, ["test-clean"])
    with pytest.raises(InputError, match="is a string; write a list"):
        prepare_librispeech(root, tmp_path, "dev-clean")
    chapter = root / "LibriSpeech" / "dev-clean" / "84" / "121123"
    (chapter / "84-121123-0001.flac").unlink()
    with pytest.raises(ManifestError, match=r"84-121123\.trans\.txt:2: .*0001\.flac: no such audio file"):
        prepare_librispeech(root, tmp_path / "m")
    (chapter / "84-121123.trans.txt").write_text("84-121123-0000\n")
    with pytest.raises(ManifestError, match=r"trans\.txt:1: expected \"speaker-chapter-utterance TEXT\""):
        prepare_librispeech(root, tmp_path / "m")
    assert not (tmp_path / "m").exists()


class Mirror(http.server.BaseHTTPRequestHandler):
    """Serves one archive; the first answer breaks off in the middle; understands Range."""

    content = b""
    starts: ClassVar[list[int]] = []

    def do_GET(self) -> None:
        start = int((self.headers.get("Range") or "bytes=0-")[6:].rstrip("-"))
        self.starts.append(start)
        if start >= len(self.content):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(self.content) - start))
        self.end_headers()
        first = len(self.starts) == 1
        self.wfile.write(self.content[start : len(self.content) // 2] if first else self.content[start:])

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    make_tree(tmp_path / "source", "dev-clean")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        tar.add(tmp_path / "source" / "LibriSpeech", "LibriSpeech")
    monkeypatch.setattr(Mirror, "content", buffer.getvalue())
    monkeypatch.setattr(Mirror, "starts", [])
    monkeypatch.setitem(librispeech.MD5, "dev-clean", hashlib.md5(buffer.getvalue()).hexdigest())
    monkeypatch.setenv("no_proxy", "*")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Mirror)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_download_resumes_checks_and_unpacks(mirror: str, tmp_path: Path):
    root = tmp_path / "corpora"
    with pytest.raises(InputError, match="dev-clean.tar.gz: cannot be downloaded .*connection.*it resumes"):
        download_librispeech(root, ["dev-clean"], base_url=mirror)
    half = (root / "dev-clean.tar.gz.part").stat().st_size
    assert half == len(Mirror.content) // 2
    assert download_librispeech(root, ["dev-clean"], base_url=mirror) == root / "LibriSpeech"
    assert Mirror.starts == [0, half], "the second request went on where the first broke off"
    assert len(Manifest.read(prepare_librispeech(root, tmp_path)["dev-clean"], check_files=True)) == 2
    assert [entry.name for entry in root.iterdir()] == ["LibriSpeech"], "archive and temporary folders are gone"
    download_librispeech(root, ["dev-clean"], base_url=mirror)
    assert len(Mirror.starts) == 2, "a finished subset is left alone"


def test_a_subset_is_there_after_what_is_told_of_its_speakers(mirror: str, tmp_path: Path, monkeypatch) -> None:
    Mirror.starts.append(0)  # no breaking off this time
    replace = librispeech.os.replace

    def killed(source: Path, target: Path) -> None:
        replace(source, target)
        if Path(target).name == "dev-clean":
            raise KeyboardInterrupt

    monkeypatch.setattr(librispeech.os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        download_librispeech(tmp_path, ["dev-clean"], base_url=mirror)
    assert {file.name for file in (tmp_path / "LibriSpeech").glob("[!.]*")} == {"dev-clean", "SPEAKERS.TXT"}


@pytest.mark.parametrize("whole", [librispeech, download])
def test_two_that_download_at_once_do_it_once(mirror: str, tmp_path: Path, monkeypatch, whole) -> None:
    Mirror.starts.append(0)  # no breaking off this time
    fetch, others = whole.fetch, [0]

    def get() -> Path:
        if whole is librispeech:
            return download_librispeech(tmp_path, ["dev-clean"], base_url=mirror)
        return download.download_archive(f"{mirror}/dev-clean.tar.gz", tmp_path / "corpus")

    def beside_another(*arguments: object, **options: str) -> None:
        """The other one comes when this one has looked, and has a second to be quicker."""
        if others:
            others.clear()
            ours.append(threads.submit(get))
            with suppress(TimeoutError):
                ours[0].result(1)
        fetch(*arguments, **options)

    monkeypatch.setattr(whole, "fetch", beside_another)
    with ThreadPoolExecutor(1) as threads:
        ours: list[Future] = []
        place = get()
        assert ours[0].result() == place and len(list(place.rglob("*.flac"))) == 2
    assert len(Mirror.starts) == 2


def test_download_starts_over_from_a_foreign_part(mirror: str, tmp_path: Path):
    Mirror.starts.append(0)  # no breaking off this time
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "dev-clean.tar.gz.part").write_bytes(b"x" * (len(Mirror.content) + 1))
    download_librispeech(tmp_path / "c", ["dev-clean"], base_url=mirror)
    assert (tmp_path / "c" / "LibriSpeech" / "dev-clean" / "84").is_dir()


def test_wrong_checksum_and_archives_brought_by_hand(mirror: str, tmp_path: Path):
    root = tmp_path / "corpora"
    root.mkdir()
    (root / "dev-clean.tar.gz").write_bytes(Mirror.content[:-1])
    with pytest.raises(InputError, match=r"dev-clean\.tar\.gz: MD5 .*expected"):
        download_librispeech(root, ["dev-clean"], base_url="http://127.0.0.1:9")
    (root / "dev-clean.tar.gz").write_bytes(Mirror.content)
    download_librispeech(root, ["dev-clean"], base_url="http://127.0.0.1:9")
    assert (root / "LibriSpeech" / "dev-clean").is_dir() and not Mirror.starts


def test_offline_is_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("no_proxy", "*")
    with pytest.raises(InputError, match=r"test-clean\.tar\.gz: cannot be downloaded .*by hand .*base_url="):
        download_librispeech(tmp_path, ["test-clean"], base_url="http://127.0.0.1:9")
    with pytest.raises(InputError, match="subset 'dev-dirty' is not there; use some of dev-clean"):
        download_librispeech(tmp_path, ["dev-dirty"])
