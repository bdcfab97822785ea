"""LibriSpeech: about 1000 h of read English, CC BY 4.0 (Panayotov et al., ICASSP 2015), https://www.openslr.org/12/.

Layout of the corpus as the archives unpack::

    root/
      LibriSpeech/
        SPEAKERS.TXT                      "1089 | M | test-clean | 8.03 | Peter Bobbe"
        test-clean/1089/134686/
          1089-134686.trans.txt           "1089-134686-0000 HE HOPED THERE WOULD BE STEW FOR DINNER"
          1089-134686-0000.flac           16 kHz, 16 bit, mono; speaker-chapter-utterance

>>> download_librispeech("corpora", ["dev-clean", "test-clean"])                   # doctest: +SKIP
>>> prepare_librispeech("corpora", "corpora/manifests", ["dev-clean"])             # doctest: +SKIP
{'dev-clean': PosixPath('corpora/manifests/librispeech_dev-clean.jsonl')}
"""

from __future__ import annotations

import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path

from speech_adapters.corpora.download import check_md5, fetch
from speech_adapters.data.audio import audio_info
from speech_adapters.data.manifest import Manifest, Utterance, check_disjoint
from speech_adapters.errors import AudioError, InputError, ManifestError
from speech_adapters.locks import locked

URL = "https://www.openslr.org/resources/12"

MD5 = {
    "dev-clean": "42e2234ba48799c1f50f24a7926300a1",
    "dev-other": "c8d0bcc9cca99d4f8b62fcc847357931",
    "test-clean": "32fa31d27d2e1cad72775fff3f4849a9",
    "test-other": "fb5a50374b501bb3bac4815ee91d3135",
    "train-clean-100": "2a93770f6d5c6c964bc36631d331a522",
    "train-clean-360": "c0e676e450a7ff2f54aeade5171606fa",
    "train-other-500": "d1a0fd59409feb2c614ce4d30c387708",
}
"""Subset -> MD5 of its archive, from the official md5sum.txt beside the archives."""


def download_librispeech(
    root: str | os.PathLike[str], subsets: Sequence[str] = ("dev-clean", "test-clean"), *, base_url: str = URL
) -> Path:
    """Download, check and unpack official archives into ``root/LibriSpeech``, and return that folder.

    A broken download resumes where it stopped; a finished subset is left alone; an archive that already lies in
    ``root`` is used instead of the network. Archives are removed once unpacked. ``base_url`` may name a mirror.

    Raises:
        InputError: an unknown subset, no network, or an archive with another checksum.
    """
    _check_subsets(subsets, MD5)
    root = Path(root)
    corpus = root / "LibriSpeech"
    corpus.mkdir(parents=True, exist_ok=True)
    for subset in subsets:
        complete = corpus / f".{subset}.complete"
        if complete.exists():
            continue
        archive = root / f"{subset}.tar.gz"
        with locked(archive):
            if complete.exists():  # by another process meanwhile
                continue
            if not archive.exists():
                fetch(f"{base_url}/{subset}.tar.gz", archive)
            check_md5(archive, MD5[subset])
            _unpack(archive, root, subset)
            complete.touch()
            archive.unlink()
    return corpus


def prepare_librispeech(
    root: str | os.PathLike[str], output: str | os.PathLike[str], subsets: Sequence[str] | None = None
) -> dict[str, Path]:
    """Write one manifest a subset, ``output/librispeech_<subset>.jsonl``, and return subset -> manifest.

    ``root`` is the folder ``LibriSpeech`` or the one around it. By default all subsets found there are prepared.

    Raises:
        InputError: no LibriSpeech there, or an asked subset is not.
        ManifestError: a transcript without audio, a broken line, or a speaker in both training and evaluation.
    """
    from tqdm import tqdm

    corpus, output = find_librispeech(root), Path(output)
    present = [subset for subset in MD5 if (corpus / subset).is_dir()]
    _check_subsets(subsets or (), present, where=corpus)
    genders = _genders(corpus / "SPEAKERS.TXT")
    paths, manifests = {}, {}
    for subset in subsets or present:
        lines = _utterances(corpus / subset, genders)
        manifest = Manifest(tqdm(lines, desc=f"reading {subset}", unit="utt", mininterval=1, delay=1, disable=None))
        if not len(manifest):
            raise InputError(f"{corpus / subset}: no *.trans.txt in it; download {subset} again")
        paths[subset] = output / f"librispeech_{subset}.jsonl"
        manifest.write(paths[subset])
        manifests[subset] = Manifest.read(paths[subset], require=("text", "speaker"))
    for first, second in combinations(manifests, 2):
        check_disjoint(manifests[first], manifests[second])
    return paths


def find_librispeech(root: str | os.PathLike[str]) -> Path:
    """The folder ``LibriSpeech`` itself, given it or its parent.

    Raises:
        InputError: neither holds a subset; says how to get one.
    """
    for folder in (Path(root) / "LibriSpeech", Path(root)):
        if any((folder / subset).is_dir() for subset in MD5):
            return folder
    raise InputError(
        f"{root}: no LibriSpeech there (expected LibriSpeech/<subset>/<speaker>/<chapter>/); get it with "
        f'download_librispeech("{root}", ["dev-clean"]) or by hand from {URL}'
    )


def _check_subsets(subsets: Sequence[str], known: Sequence[str] | dict[str, str], where: Path | None = None) -> None:
    if isinstance(subsets, str):
        raise InputError(f"subsets={subsets!r} is a string; write a list: [{subsets!r}]")
    for subset in subsets:
        if subset not in known:
            place = f"{where}: " if where else ""
            raise InputError(f"{place}subset {subset!r} is not there; use some of {', '.join(known) or '(none)'}")


def _utterances(folder: Path, genders: dict[str, str]) -> Iterator[Utterance]:
    for transcripts in sorted(folder.glob("*/*/*.trans.txt")):
        for number, line in enumerate(transcripts.read_text(encoding="utf-8").splitlines(), start=1):
            identity, _, text = line.strip().partition(" ")
            speaker = identity.partition("-")[0]
            if not text or speaker != transcripts.parent.parent.name:
                raise ManifestError(f'{transcripts}:{number}: expected "speaker-chapter-utterance TEXT", got {line!r}')
            audio = transcripts.parent / f"{identity}.flac"
            try:
                duration = audio_info(audio).duration
            except AudioError as error:
                raise ManifestError(f"{transcripts}:{number}: {error}") from error
            extra = {"gender": genders[speaker]} if speaker in genders else {}
            yield Utterance(
                identity, audio.absolute(), duration, text=text, speaker=speaker, domain="read", lang="en", extra=extra
            )


def _genders(path: Path) -> dict[str, str]:
    if not path.exists():
        return {}
    rows = (line.split("|") for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith(";"))
    return {row[0].strip(): row[1].strip() for row in rows if len(row) > 1}


def _unpack(archive: Path, root: Path, subset: str) -> None:
    """Unpack beside the corpus, then move the subset and the text files into it."""
    with tempfile.TemporaryDirectory(dir=root, prefix=f".{subset}-") as folder:
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")
        unpacked = Path(folder) / "LibriSpeech"
        for file in unpacked.glob("*.TXT"):  # first: a subset that is there is taken without them
            os.replace(file, root / "LibriSpeech" / file.name)
        target = root / "LibriSpeech" / subset
        shutil.rmtree(target, ignore_errors=True)  # of an earlier, interrupted unpacking
        os.replace(unpacked / subset, target)
