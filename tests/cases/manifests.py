"""Bad manifests: name -> (the file's bytes, what the error says)."""

from __future__ import annotations

import json


def line(**changes: object) -> bytes:
    entry = {"audio_filepath": "a.wav", "duration": 1.5, "text": "HELLO"} | changes
    return json.dumps({key: value for key, value in entry.items() if value is not ...}).encode()


GOOD = line(id="good")

BAD_MANIFESTS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "empty manifest"),
    "blank lines": (b"\n  \n\r\n", "empty manifest"),
    "only a mark of byte order": (b"\xef\xbb\xbf", "empty manifest"),
    "not JSON": (b"{audio", ":1: not JSON"),
    "a JSON array over several lines": (b'[\n{"audio_filepath": "a.wav", "duration": 1}\n]', ":1: not JSON"),
    "single quotes": (b"{'audio_filepath': 'a.wav', 'duration': 1}", ":1: not JSON"),
    "two objects in a line": (GOOD + GOOD, ":1: not JSON"),
    "a comma after the object": (GOOD + b",", ":1: not JSON"),
    "cut": (GOOD[:-5], ":1: not JSON"),
    "a list": (b"[1, 2]", "a list; each line must be one JSON object"),
    "a number": (b"3", "a int; each line"),
    "null": (b"null", "a NoneType; each line"),
    "CSV": (b"audio_filepath,duration\na.wav,1.0\n", ":1: not JSON"),
    "Latin-1": (line(text="E").replace(b"E", b"\xe9"), ":1: not UTF-8"),
    "UTF-16": (GOOD.decode().encode("utf-16"), "not UTF-8 text but UTF-16; save the manifest again as UTF-8"),
    "UTF-16 without a mark": (GOOD.decode().encode("utf-16-be"), "UTF-16; .*iconv -f UTF-16BE -t UTF-8"),
    "nested without end": (b"[" * 100_000, ":1: not JSON"),
    "nested deeply in a further key": (b'{"a":' * 100_000, ":1: not JSON"),
    "a number of 5,000 digits": (b'{"audio_filepath": "a.wav", "duration": ' + b"9" * 5_000 + b"}", ":1: not JSON"),
    "a number of 400 digits": (b'{"audio_filepath": "a.wav", "duration": ' + b"9" * 400 + b"}", "expected seconds"),
    "NaN": (b'{"audio_filepath": "a.wav", "duration": NaN}', "not JSON .*NaN"),
    "Infinity": (b'{"audio_filepath": "a.wav", "duration": -Infinity}', "not JSON .*Infinity"),
    "1e999": (b'{"audio_filepath": "a.wav", "duration": 1e999}', "duration is inf, expected seconds"),
    "1e999 in a further key": (GOOD[:-1] + b', "snr": 1e999}', "infinite number in a further key"),
    "1e999 deep in a further key": (GOOD[:-1] + b', "x": [{"y": 1e999}]}', "infinite number in a further key"),
    "a key twice": (b'{"audio_filepath": "a.wav", "duration": 1, "duration": 2}', "'duration' is there twice"),
    "a key twice, deep": (GOOD[:-1] + b', "x": {"y": 1, "y": 2}}', "'y' is there twice"),
    "no path": (line(audio_filepath=...), "lacks 'audio_filepath'"),
    "path null": (line(audio_filepath=None), "lacks 'audio_filepath'"),
    "path empty": (line(audio_filepath=""), "audio_filepath is '', expected a path"),
    "path a number": (line(audio_filepath=3), "audio_filepath is 3"),
    "path a list": (line(audio_filepath=["a.wav"]), r"audio_filepath is \['a.wav'\]"),
    "path a dot": (line(audio_filepath="."), "is not the name of a file"),
    "path the folder above": (line(audio_filepath="x/.."), "is not the name of a file"),
    "path of a folder": (line(audio_filepath="audio/"), "is not the name of a file"),
    "path with NUL": (line(audio_filepath="a\0.wav"), "with a control character"),
    "path with a line feed": (line(audio_filepath="a\n.wav"), "with a control character"),
    "no duration": (line(duration=...), "lacks 'duration'"),
    "duration text": (line(duration="1.5"), "duration is '1.5', expected seconds"),
    "duration true": (line(duration=True), "duration is True"),
    "duration 0": (line(duration=0), "duration is 0 s, expected more than 0"),
    "duration negative": (line(duration=-2.5), "duration is -2.5 s"),
    "duration a list": (line(duration=[1]), r"duration is \[1\]"),
    "offset negative": (line(offset=-1), "offset is -1 s"),
    "offset text": (line(offset="0:30"), "offset is '0:30'"),
    "text a list": (line(text=["HELLO"]), r"text is \['HELLO'\], expected a string"),
    "text a fraction": (line(text=1.5), "text is 1.5, expected a string"),
    "speaker an object": (line(speaker={}), "speaker is {}, expected a string"),
    "speaker with a tab": (line(speaker="a\tb"), "speaker is 'a.tb', with a control character"),
    "id a list": (line(id=[]), r"id is \[\], expected a string"),
    "id with NUL": (line(id="a\0"), "with a control character"),
    "id with DEL": (b'{"audio_filepath": "a.wav", "duration": 1, "id": "a\x7f"}', "with a control character"),
    "label with a return": (line(label="a\r"), "with a control character"),
    "half a surrogate pair in text": (line(text="\ud800"), "half of a surrogate pair"),
    "half a surrogate pair in an id": (line(id="\udfff"), "half of a surrogate pair"),
    "half a surrogate pair in a path": (line(audio_filepath="\udc80.wav"), "half of a surrogate pair"),
    "half a surrogate pair in a further key": (line(note="\ud800"), "half of a surrogate pair"),
    "half a surrogate pair as a further key": (GOOD[:-1] + b', "\\ud800": 1}', "half of a surrogate pair"),
    "an id twice": (GOOD + b"\n" + GOOD, "id 'good' repeats that of line 1"),
    "two lines of one file": (line() + b"\n" + line(), "id 'a' repeats that of line 1"),
    "a segment twice": (line(offset=2) + b"\n" + line(offset=2), "id 'a-2.000' repeats"),
}  # fmt: skip
