"""VoxCeleb1 and 2: speech of celebrities from interview videos (Nagrani et al., Interspeech 2017; Chung et al., 2018).

CC BY 4.0 labels, audio on request: https://www.robots.ox.ac.uk/~vgg/data/voxceleb/. Layouts, as the archives unpack,
``wav`` (VoxCeleb1) or ``aac`` (VoxCeleb2) in folders for dev and test, or all together::

    root/
      dev/wav/id10001/1zcIwhmdeo4/00001.wav      speaker / video / utterance; 16 kHz
      test/wav/id10270/5r0dWxy17C8/00001.wav
      wav/id10270/...                            VoxCeleb1 in one folder: its 40 test speakers are known by number
      veri_test2.txt ...                         "1 id10270/x6uYqmx31kE/00001.wav id10270/8jEAjG6SegY/00008.wav"

VoxCeleb2 is distributed as .m4a, which libsndfile does not read; convert it in place first::

    find root -name '*.m4a' -exec sh -c 'ffmpeg -loglevel error -i "$1" -ar 16000 -ac 1 "${1%.m4a}.wav"' _ {} \\;

An utterance's id is its path from the speaker on, without suffix, as trial lists name it.

>>> prepare_voxceleb("voxceleb1", "manifests", trials=["voxceleb1/veri_test2.txt"])            # doctest: +SKIP
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path

from speech_adapters.corpora.layout import measure, write_manifest
from speech_adapters.data.manifest import Manifest, Utterance, check_disjoint
from speech_adapters.data.trials import UtteranceIndex, read_trials, resolve, trial_speakers
from speech_adapters.errors import InputError
from speech_adapters.files import write_text

TRIALS = {
    "veri_test.txt": 37_720,
    "veri_test2.txt": 37_611,
    "list_test_all.txt": 581_480,
    "list_test_all2.txt": 579_818,
    "list_test_hard.txt": 552_536,
    "list_test_hard2.txt": 550_894,
}
"""Official lists (Vox1-O, E, H; each also cleaned: 2) -> their numbers of trials."""

VOXCELEB1_TEST = range(10_270, 10_310)
"""Numbers of VoxCeleb1's 40 test speakers, those whose names begin with E. VoxCeleb1 starts at id10001."""

_SITE = "https://www.robots.ox.ac.uk/~vgg/data/voxceleb/"


def prepare_voxceleb(
    root: str | os.PathLike[str], output: str | os.PathLike[str], trials: Sequence[str | os.PathLike[str]] = ()
) -> dict[str, Path]:
    """Write ``output/voxceleb{1,2}_{dev,test}.jsonl``, as far as they are there, and checked copies of trial lists.

    Where VoxCeleb1 has both, ``voxceleb1.jsonl`` holds the two together, which Vox1-E and H test on. Returns the name
    of each manifest (``voxceleb1_dev``) and trial list (``veri_test2``) -> its file.

    Raises:
        InputError: no VoxCeleb there, only .m4a files, or an official trial list of the wrong length.
        ManifestError: a broken file, a speaker in dev and test, or with ``file:line`` a trial whose utterance is not
            there or whose label contradicts the speakers.
    """
    if isinstance(trials, str | os.PathLike):
        raise InputError(f"trials={os.fspath(trials)!r} is one path; write a list: [{os.fspath(trials)!r}]")
    root, output = Path(root), Path(output)
    manifests: dict[str, Manifest] = {}
    for name, speakers in _sets(root).items():
        manifests[name] = write_manifest(_utterances(speakers), output / f"{name}.jsonl", ("speaker",), name=name)
    for first, second in combinations(manifests.values(), 2):
        check_disjoint(first, second)
    everything = Manifest((u for manifest in manifests.values() for u in manifest), f"what {root} holds")
    if {"voxceleb1_dev", "voxceleb1_test"} <= manifests.keys():
        manifests["voxceleb1"] = manifests["voxceleb1_dev"] + manifests["voxceleb1_test"]
        manifests["voxceleb1"].write(output / "voxceleb1.jsonl")
    paths = {name: output / f"{name}.jsonl" for name in manifests}
    for source in map(Path, trials):
        _check_trials(source, everything)
        paths[source.stem] = output / source.name
        write_text(paths[source.stem], source.read_text(encoding="utf-8-sig"))
    return paths


def _sets(root: Path) -> dict[str, list[Path]]:
    """Folders of speakers by set."""
    sets: dict[str, list[Path]] = {}
    for pattern in ("id*", "*/id*", "*/*/id*"):
        for folder in sorted(root.glob(pattern)):
            if not re.fullmatch(r"id\d{5}", folder.name) or not folder.is_dir():
                continue
            number = int(folder.name[2:])
            first = number > 10_000
            test = number in VOXCELEB1_TEST if first else "test" in folder.relative_to(root).parts
            sets.setdefault(f"voxceleb{1 if first else 2}_{'test' if test else 'dev'}", []).append(folder)
    if not sets:
        raise InputError(
            f"{root}: no VoxCeleb there (expected dev/wav/id10001/<video>/00001.wav); request it at {_SITE}"
        )
    return sets


def _utterances(speakers: Sequence[Path]) -> Iterator[Utterance]:
    for speaker in speakers:
        files = sorted(speaker.glob("*/*.wav"))
        if not files:
            if next(speaker.glob("*/*.m4a"), None) is not None:
                raise InputError(
                    f"{speaker}: holds .m4a files, which cannot be read; convert them to .wav with the ffmpeg command "
                    "in the docstring of speech_adapters.corpora.voxceleb"
                )
            raise InputError(f"{speaker}: no <video>/<utterance>.wav in it; unpack the archive again")
        for file in files:
            yield Utterance(
                file.relative_to(speaker.parent).with_suffix("").as_posix(),
                file.absolute(),
                measure(file, speaker).duration,
                speaker=speaker.name,
                domain="interview",
                extra={"video": file.parent.name},
            )


def _check_trials(path: Path, manifest: Manifest) -> None:
    expected = TRIALS.get(path.name)
    trials = read_trials(path, allow_repeats=expected is not None)  # an official list is what it is
    if expected is not None and len(trials) != expected:
        raise InputError(f"{path}: {len(trials)} trials, the official list has {expected}; get it again from {_SITE}")
    trial_speakers(resolve(trials, UtteranceIndex.of_manifest(manifest)), [u.speaker for u in manifest])
