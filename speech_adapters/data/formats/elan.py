"""Annotations of ELAN, ``.eaf`` (Max Planck Institute for Psycholinguistics, "ELAN Annotation Format", version 3.0).

Such a file is XML. An annotation lies between two slots of time, in milliseconds, or hangs on one of another tier,
whose times it has, after the one before it::

    <TIME_SLOT TIME_SLOT_ID="ts1" TIME_VALUE="760"/>
    <TIER TIER_ID="turns" PARTICIPANT="Anna">
        <ALIGNABLE_ANNOTATION ANNOTATION_ID="a1" TIME_SLOT_REF1="ts1" TIME_SLOT_REF2="ts2">
            <ANNOTATION_VALUE>greets</ANNOTATION_VALUE>
    <TIER TIER_ID="words" PARTICIPANT="Anna" PARENT_REF="turns">
        <REF_ANNOTATION ANNOTATION_ID="a7" ANNOTATION_REF="a1">
            <ANNOTATION_VALUE>Good</ANNOTATION_VALUE>
        <REF_ANNOTATION ANNOTATION_ID="a8" ANNOTATION_REF="a1" PREVIOUS_ANNOTATION="a7">
            <ANNOTATION_VALUE>morning.</ANNOTATION_VALUE>
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote
from xml.parsers import expat

from speech_adapters.data.formats.interval import Interval
from speech_adapters.data.text_files import reading
from speech_adapters.errors import ManifestError

SUFFIX = ".eaf"


def read_tiers(path: Path, wanted: Collection[str] = ()) -> dict[str, list[Interval]]:
    """The annotations with text of each tier; what hangs on one annotation, as the words of a turn, is one interval.
    The speaker is the tier's participant. Tiers that are not ``wanted`` are given without their intervals.

    Raises:
        ManifestError: a file of another kind, one that is cut short, and where wanted tiers are concerned, a slot
            without a time or annotations out of order; a recording that begins elsewhere than the annotations' time.
    """
    document, tier = _Document(path), ""
    for element in _elements(path):
        match element.tag:
            case "HEADER" if (unit := element.said.get("TIME_UNITS", "milliseconds")) != "milliseconds":
                raise document.error(element, f"its times are in {unit}; save them in milliseconds")
            case "MEDIA_DESCRIPTOR":
                document.check_origin(element)
            case "TIME_SLOT":
                document.slots[document.named(element, "TIME_SLOT_ID")] = element
            case "TIER":
                tier = document.named(element, "TIER_ID").strip()
                if tier in document.tiers and tier in wanted:
                    raise document.error(element, f"a second tier {tier!r}; give each a name of its own")
                document.tiers[tier], document.speakers[tier] = [], element.said.get("PARTICIPANT", "").strip()
            case "ALIGNABLE_ANNOTATION" | "REF_ANNOTATION":
                if not document.tiers:
                    raise document.error(element, "an annotation outside of any tier; save the file again in ELAN")
                document.tiers[tier].append(element)
                document.annotations[document.named(element, "ANNOTATION_ID")] = element
    return {name: list(document.intervals(name)) if name in wanted else [] for name in document.tiers}


@dataclass
class _Element:
    """An element of a file: its line, name, attributes, and all the text in it."""

    line: int
    tag: str
    said: dict[str, str]
    texts: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return " ".join("".join(self.texts).split())


def _elements(path: Path) -> list[_Element]:
    """The elements in the order in which they begin."""
    found: list[_Element] = []
    around: list[_Element] = []
    parser = expat.ParserCreate()

    def start(tag: str, said: dict[str, str]) -> None:
        if not found and tag != "ANNOTATION_DOCUMENT":
            raise ManifestError(f"{path}: not a file of ELAN's; save one with 'Save As'")
        found.append(_Element(parser.CurrentLineNumber, tag, said))
        around.append(found[-1])

    def hear(text: str) -> None:
        for element in around:
            if element.tag.endswith("_ANNOTATION"):
                element.texts.append(text)

    parser.StartElementHandler, parser.CharacterDataHandler = start, hear
    parser.EndElementHandler = lambda tag: around.pop()
    with reading(path, "ELAN file"):
        try:
            parser.Parse(path.read_bytes(), True)
        except expat.ExpatError as error:
            reason = expat.ErrorString(error.code)
            raise ManifestError(f"{path}:{error.lineno}: no XML any more ({reason}); save it again in ELAN") from error
    return found


class _Document:
    """What a file's annotations refer to, by the ids."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.slots: dict[str, _Element] = {}
        self.tiers: dict[str, list[_Element]] = {}
        self.speakers: dict[str, str] = {}
        self.annotations: dict[str, _Element] = {}

    def error(self, element: _Element, message: str) -> ManifestError:
        return ManifestError(f"{self.path}:{element.line}: {message}")

    def named(self, element: _Element, key: str) -> str:
        """An attribute that an element must have."""
        if key not in element.said:
            raise self.error(element, f"{element.tag} without {key}; save the file again in ELAN")
        return element.said[key]

    def referred(self, element: _Element, key: str, known: dict[str, _Element]) -> _Element:
        """The element that an attribute refers to."""
        if (name := self.named(element, key)) not in known:
            raise self.error(element, f"{key} is {name!r}, which is not there; save the file again in ELAN")
        return known[name]

    def check_origin(self, media: _Element) -> None:
        """Raise for the recording of this file's name where it begins before or after the annotations' time."""
        url, origin = unquote(media.said.get("MEDIA_URL", "")), media.said.get("TIME_ORIGIN", "0")
        if Path(url.replace("\\", "/")).stem == self.path.stem and origin.strip() not in ("", "0"):
            raise self.error(
                media, f"the recording is {origin} ms apart from the annotations (TIME_ORIGIN); shift them in ELAN"
            )

    def intervals(self, tier: str) -> Iterator[Interval]:
        """Those of a tier that have a text."""
        parts: dict[int, list[_Element]] = {}  # by where the times are
        before: dict[str, str] = {}  # the last of those that hang on an annotation
        for annotation in self.tiers[tier]:
            if annotation.tag == "REF_ANNOTATION":
                above = self.named(annotation, "ANNOTATION_REF")
                if annotation.said.get("PREVIOUS_ANNOTATION", before.get(above)) != before.get(above):
                    raise self.error(
                        annotation, f"not in the order of PREVIOUS_ANNOTATION in {tier!r}; save the file again in ELAN"
                    )
                before[above] = annotation.said["ANNOTATION_ID"]
            parts.setdefault(id(self._timed(annotation)), []).append(annotation)
        for group in parts.values():
            if text := " ".join(filter(None, (annotation.text for annotation in group))):
                timed = self._timed(group[0])
                start, end = (self._seconds(timed, key) for key in ("TIME_SLOT_REF1", "TIME_SLOT_REF2"))
                yield Interval(group[0].line, start, end, text, self.speakers[tier] or None)

    def _timed(self, annotation: _Element) -> _Element:
        """The annotation between two slots that one hangs on, or itself."""
        passed: list[_Element] = []
        while annotation.tag == "REF_ANNOTATION":
            if annotation in passed:
                raise self.error(annotation, "hangs on itself; save the file again in ELAN")
            passed.append(annotation)
            annotation = self.referred(annotation, "ANNOTATION_REF", self.annotations)
        return annotation

    def _seconds(self, annotation: _Element, key: str) -> float:
        slot = self.referred(annotation, key, self.slots)
        value = slot.said.get("TIME_VALUE", "")
        if not value.isdecimal():
            raise self.error(
                annotation, f"the slot {slot.said['TIME_SLOT_ID']} has no time ({value!r}); align it in ELAN"
            )
        return int(value) / 1000
