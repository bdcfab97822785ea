"""Everything in a set of manifests that training or scoring would trip over: what ``speech-adapters check`` prints.

Each function gives findings, one sentence each, that name the manifest, the utterances and the remedy; none means fit.
Notes are what a person should know and may well want as it is.
"""

from __future__ import annotations

import os
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from operator import itemgetter
from pathlib import Path

from speech_adapters.data.audio import DURATION_TOLERANCE
from speech_adapters.data.audio_files import audio_hashes
from speech_adapters.data.manifest import Channel, Manifest, Utterance, check_disjoint
from speech_adapters.data.problems import SHOWN_PROBLEMS
from speech_adapters.errors import ManifestError, counted
from speech_adapters.text import utterance_names
from speech_adapters.text.spellings import difference, is_placeholder, quoted, spelt_differently

SHORTEST = 0.2
"""Seconds in which nothing is said that a transcript could hold: about one syllable."""

LONGEST = 30.0
"""Seconds above which an utterance asks for a decision: what Whisper's encoders hear at most."""


def read_all(
    paths: Sequence[str | os.PathLike[str]], channel: Channel | None = None
) -> tuple[list[Manifest], list[str], int]:
    """The manifests that can be read, the bad lines of those that cannot, and how many bad lines there are, shown or
    not; ``channel`` of lines that name none."""
    manifests, findings, count = [], [], 0
    for path in paths:
        try:
            manifests.append(Manifest.read(path, channel=channel))
        except ManifestError as error:
            findings += str(error).split("\n")
            count += error.problems
    return manifests, findings, count


def check_corpus(manifests: Sequence[Manifest]) -> list[str]:
    """The findings in manifests that are used together: splits of one corpus."""
    findings: list[str] = []
    for manifest in manifests:
        unsaid = manifest.need_channel()
        findings += channel_findings(manifest, unsaid)
        findings += audio_findings(manifest, unsaid)
        findings += text_findings(manifest)
        findings += missing_findings(manifest)
        findings += placeholder_findings(manifest)
    for key in ("speaker", "emotion", "label"):
        findings += spelling_findings(manifests, key)
    for (first, pieces), (second, others) in combinations(_pieces(manifests), 2):
        try:
            check_disjoint(first, second)
        except ManifestError as error:
            findings.append(str(error))
        findings += shared_audio_findings(first, second, pieces, others)
    return findings


def check_apart(first: Manifest, second: Manifest, *, speakers: bool = True) -> None:
    """Check that no speaker is in both manifests, and no utterance: speakers may be unknown, or called otherwise in a
    table that a spreadsheet has saved. Of people who interrupt each other some audio may be in both.

    Args:
        speakers: whether they are compared at all.

    Raises:
        ManifestError: names what is shared.
    """
    if speakers:
        check_disjoint(first, second)
    known = {str(u.audio_filepath) for u in second}
    pieces = _pieces_of((str(u.audio_filepath), u) for u in first if str(u.audio_filepath) in known)
    if not pieces:
        return
    others = _pieces_of((str(u.audio_filepath), u) for u in second)
    if findings := shared_audio_findings(first, second, pieces, others, share=0.5):
        raise ManifestError(findings[0])


def corpus_notes(manifests: Sequence[Manifest]) -> list[str]:
    """What the same manifests hold that is no fault: long utterances, and what keeps splits from being compared."""
    notes = []
    for manifest in manifests:
        if long := [u.id for u in manifest if u.duration > LONGEST]:
            notes.append(
                f"{manifest.name}: {counted(len(long), 'utterance')} of more than {LONGEST:g} s, such as {long[0]!r}; "
                "training.crop_seconds=20 trains on pieces of them (not recognition, which needs them cut, each piece "
                "with its text), windows.seconds=20 scores them in pieces"
            )
        if len(manifests) > 1 and (unknown := [u.id for u in manifest if u.speaker is None]):
            some = "speakers" if len(unknown) == len(manifest) else f"the speaker of {utterance_names(unknown)}"
            notes.append(f'{manifest.name}: {some} unknown: disjointness not checked; add the key "speaker"')
    unknown_speakers = [manifest.filter(lambda u: u.speaker is None) for manifest in manifests]
    notes += divided_notes(unknown_speakers, "speech-adapters manifest split --by audio_filepath keeps")
    for first, second in combinations(manifests, 2):
        if shared := sorted({u.id for u in first} & {u.id for u in second}):
            notes.append(
                f"{first.name}: shares {counted(len(shared), 'id')} with {second.name}: {utterance_names(shared)}; "
                "make sure that they are other recordings, and give each its own id before the two are joined"
            )
    return notes


def divided_notes(manifests: Sequence[Manifest], remedy: str) -> list[str]:
    """Recordings with pieces in several of the manifests: one voice, one room. ``remedy`` keeps these together."""
    notes = []
    for first, second in combinations(manifests, 2):
        if both := sorted({u.audio_filepath for u in first} & {u.audio_filepath for u in second}):
            notes.append(
                f"{first.name}: pieces of {counted(len(both), 'recording')}, such as {both[0].name}, are in "
                f"{second.name} too: scores would be flattered; {remedy} the pieces of a recording together"
            )
    return notes


def channel_findings(manifest: Manifest, unsaid: Mapping[Path, int]) -> list[str]:
    """Which files need a channel: those of several (``unsaid``) where a line names none."""
    if not unsaid:
        return []
    counts = " or ".join(map(str, sorted(set(unsaid.values()))))
    words = {str(u.get("channel")) for u in manifest if u.audio_filepath in unsaid and u.extra.get("channel")}
    said = f" (its {utterance_names(sorted(words))} is neither a number nor mix)" if words else ""
    return [
        f"{manifest.name}: {counted(len(unsaid), 'file')} of {counts} channels, such as "
        f"{utterance_names([file.name for file in unsaid])}, and nothing says which is heard{said}; add the key "
        '"channel" (0, 1 or "mix") to the lines of the manifest, or give --channel for the whole run'
    ]


def audio_findings(manifest: Manifest, unsaid: Mapping[Path, int]) -> list[str]:
    """Audio that cannot be used, in one sentence for all utterances with the same fault; ``unsaid`` as above."""
    alike: defaultdict[str, list[tuple[Utterance, str]]] = defaultdict(list)
    for utterance, problem in manifest.audio_problems(silence=True):
        if utterance.channel is not None or utterance.audio_filepath not in unsaid:  # said once for all
            alike[problem.removeprefix(f"{utterance.audio_filepath}: ")].append((utterance, problem))
    return [
        f"{manifest.name}: utterance {utterance_names([u.id for u, _ in found], SHOWN_PROBLEMS)}: {found[0][1]}"
        for found in alike.values()
    ]


def text_findings(manifest: Manifest) -> list[str]:
    """Transcripts without a letter or digit, and of audio that is too short for any: neither can be scored."""
    empty = [u.id for u in manifest if u.text is not None and not any(s.isalnum() for s in u.text)]
    short = [u.id for u in manifest if u.text is not None and u.duration < SHORTEST]
    findings = []
    if empty:
        findings.append(f"{manifest.name}: utterance {utterance_names(empty)}: text without a letter; remove the line")
    if short:
        findings.append(
            f"{manifest.name}: utterance {utterance_names(short)}: a text, but less than {SHORTEST:g} s of audio; "
            "correct the duration, or remove the line"
        )
    return findings


def missing_findings(manifest: Manifest) -> list[str]:
    """Keys that lack where others have them: text and speaker where any line has one, classes where most have.

    Of a blank speaker :func:`placeholder_findings` says more.
    """
    findings = []
    for key, share in (("text", 0.0), ("speaker", 0.0), ("emotion", 0.5), ("label", 0.5)):
        missing = [u.id for u in manifest if (u.get(key) is None if key == "speaker" else not u.has(key))]
        if missing and 1 - len(missing) / len(manifest) > share:
            where = f"{manifest.name}: utterance {utterance_names(missing)}"
            findings.append(f"{where}: no {key} where {'most' if share else 'other'} lines have one")
    return findings


def placeholder_findings(manifest: Manifest, key: str = "speaker") -> list[str]:
    """Words such as "n/a" as the name of a speaker: all who are called so would count as one."""
    counts = Counter(str(u.get(key)) for u in manifest if u.get(key) is not None)
    if not (said := sorted(filter(is_placeholder, counts))):
        return []
    shown = ", ".join(f"{name!r} ({counted(counts[name], 'utterance')})" for name in said)
    return [f"{manifest.name}: {key} {shown}: not a name, but would count as one; give the name, or leave the key out"]


def spelling_findings(manifests: Iterable[Manifest], key: str) -> list[str]:
    """Values that differ in case, white space or Unicode form only, within or between manifests: they would count as
    different ones."""
    classes = key in ("emotion", "label")
    where: dict[str, str] = {}
    for manifest in manifests:
        for value in map(str, manifest.values(key)):
            if classes or not is_placeholder(value):
                where.setdefault(value, manifest.name)
    findings = []
    for alike in spelt_differently(where):
        *first, last = (f"{said} ({where[value]})" for said, value in zip(quoted(alike), alike, strict=True))
        count = "two" if len(alike) == 2 else len(alike)
        findings.append(
            f"{key}: {', '.join(first)} and {last} differ in {difference(alike)} only and count as {count} "
            f"{'classes' if classes else key + 's'}; spell them alike"
        )
    return findings


_Piece = tuple[float, float, object, str]
"""Start and end in seconds, channel, id."""


def _pieces(manifests: Sequence[Manifest]) -> Iterator[tuple[Manifest, Mapping[str, list[_Piece]]]]:
    """Each manifest with the pieces that it takes of each file, by the hash of the file's bytes: copies are one."""
    for manifest in manifests:
        paths = [u.audio_filepath for u in manifest] if len(manifests) > 1 else []
        hashes = zip(paths, audio_hashes(paths), strict=True)
        files = (str(path) if file == "missing" else file for path, file in hashes)
        yield manifest, _pieces_of(zip(files, manifest, strict=False))


def _pieces_of(utterances: Iterable[tuple[str, Utterance]]) -> Mapping[str, list[_Piece]]:
    """The pieces that are taken of each file, by their start."""
    found: defaultdict[str, list[_Piece]] = defaultdict(list)
    for file, u in utterances:
        found[file].append((u.offset, u.offset + u.duration, u.channel, u.id))
    for pieces in found.values():
        pieces.sort(key=itemgetter(0))
    return found


def shared_audio_findings(
    first: Manifest,
    second: Manifest,
    pieces: Mapping[str, list[_Piece]],
    others: Mapping[str, list[_Piece]],
    share: float = 0.0,
) -> list[str]:
    """Utterances of one manifest that are heard in another too, under whatever name and speaker, in more than this
    share of the shorter one."""
    shared = []
    for file in pieces.keys() & others.keys():
        starts = [piece[0] for piece in others[file]]
        longest = max(end - start for start, end, _, _ in others[file])
        for start, end, channel, name in pieces[file]:
            near = others[file][bisect_left(starts, start - longest) : bisect_left(starts, end)]
            if any(
                min(end, other_end) - max(start, other_start)
                > max(DURATION_TOLERANCE, share * min(end - start, other_end - other_start))
                and (channel == other or not (isinstance(channel, int) and isinstance(other, int)))
                for other_start, other_end, other, _ in near
            ):
                shared.append(name)
    if not shared:
        return []
    return [
        f"{first.name}: shares the audio of {counted(len(shared), 'utterance')} with {second.name}: "
        f"{utterance_names(sorted(shared))}; scores would be flattered: keep each recording in one split"
    ]
