"""Everything in a set of manifests that training or scoring would trip over: what ``speech-adapters check`` prints.

Each function gives findings, one sentence each, that name the manifest, the utterances and the remedy; none means fit.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import Path

from speech_adapters.data.manifest import Channel, Manifest, check_disjoint
from speech_adapters.errors import ManifestError
from speech_adapters.text import utterance_names


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
        findings += [
            f"{manifest.name}: utterance {utterance.id!r}: {problem}"
            for utterance, problem in manifest.audio_problems()
            if utterance.channel is not None or utterance.audio_filepath not in unsaid  # said once for all
        ]
        findings += text_findings(manifest)
    findings += class_findings(manifests)
    for first, second in combinations(manifests, 2):
        try:
            check_disjoint(first, second)
        except ManifestError as error:
            findings.append(str(error))
    return findings


def channel_findings(manifest: Manifest, unsaid: Mapping[Path, int]) -> list[str]:
    """Which files need a channel: those of several (``unsaid``) where a line names none."""
    if not unsaid:
        return []
    counts = " or ".join(map(str, sorted(set(unsaid.values()))))
    return [
        f"{manifest.name}: {len(unsaid)} file(s) of {counts} channels, such as "
        f'{utterance_names([file.name for file in unsaid])}, and no word on which is heard; add the key "channel" '
        '(0, 1 or "mix") to the lines of the manifest, or give --channel for the whole run'
    ]


def text_findings(manifest: Manifest) -> list[str]:
    """Transcripts without a letter or digit, and those that lack where others have one: neither can be scored."""
    empty = [u.id for u in manifest if u.text is not None and not any(s.isalnum() for s in u.text)]
    missing = [u.id for u in manifest if u.text is None]
    findings = []
    if empty:
        findings.append(f"{manifest.name}: utterance {utterance_names(empty)}: text without a letter; remove the line")
    if missing and len(missing) < len(manifest):
        findings.append(f"{manifest.name}: utterance {utterance_names(missing)}: no text where other lines have one")
    return findings


def class_findings(manifests: Iterable[Manifest]) -> list[str]:
    """Classes that differ in case only, within or between manifests: they would be scored as two."""
    findings = []
    for key in ("emotion", "label"):
        spellings: defaultdict[str, set[str]] = defaultdict(set)
        where: dict[str, str] = {}
        for manifest in manifests:
            for value in manifest.values(key):
                spellings[value.casefold()].add(value)
                where.setdefault(value, manifest.name)
        for alike in spellings.values():
            if len(alike) > 1:
                shown = " and ".join(f"{value!r} ({where[value]})" for value in sorted(alike))
                findings.append(f"{key}: {shown} differ in case only and count as two classes; spell them alike")
    return findings
