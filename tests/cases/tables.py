"""Bad trial lists, enrolment maps, score files, predictions and saved embeddings: name -> (bytes, what is said)."""

from __future__ import annotations

import io
import json
import pickle
import zipfile

import numpy as np


def npy(array: np.ndarray) -> bytes:
    with io.BytesIO() as buffer:
        np.save(buffer, array, allow_pickle=True)
        return buffer.getvalue()


def bomb(**arrays: np.ndarray) -> bytes:
    """A compressed file that is a thousand times as large unpacked."""
    with io.BytesIO() as buffer:
        np.savez_compressed(buffer, **arrays)
        return buffer.getvalue()


def npz(**arrays: np.ndarray) -> bytes:
    with io.BytesIO() as buffer:
        np.savez(buffer, **arrays)
        return buffer.getvalue()


def zipped(compression: int = zipfile.ZIP_STORED, **members: bytes) -> bytes:
    with io.BytesIO() as buffer:
        with zipfile.ZipFile(buffer, "w", compression) as archive:
            for name, content in members.items():
                archive.writestr(f"{name}.npy", content)
        return buffer.getvalue()


def header(shape: str, dtype: str = "'<f8'") -> bytes:
    """A .npy file with this header and two numbers."""
    text = f"{{'descr': {dtype}, 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode() + bytes(16)


GOOD_TRIALS = b"1 a b\n0 a c\n"

BAD_TRIALS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", ":1: empty trial list"),
    "two columns": (b"1 a\n", ":1: 2 columns, expected 3"),
    "four columns": (b"1 a b\n0 a b c\n", ":2: 4 columns"),
    "a name with a space": (b"1 call 2 b\n", ":1: 4 columns"),
    "label 2": (b"2 a b\n", ":1: label '2'"),
    "label in words": (b"same a b\n", ":1: label 'same'"),
    "label first, then last": (b"1 a b\na b 1\n", ":2: label 'a'"),
    "label last, then first": (b"a b target\ntarget a b\n", ":2: label 'b'; .*in column 3"),
    "targets only": (b"1 a b\n1 a c\n", "all 2 trials up to here are targets"),
    "non-targets only": (b"0 a b\n", "are non-targets"),
    "a pair twice": (b"1 a b\n0 a c\n1 a b\n", ":3: repeats the pair of line 1"),
    "Latin-1": (b"1 \xe9 b\n", "not UTF-8"),
    "UTF-16": ("1 a b\n0 a c\n".encode("utf-16"), "not UTF-8 text but UTF-16; save the trial list again as UTF-8"),
    "UTF-16 without a mark": ("1 a b\n0 a c\n".encode("utf-16-le"), "UTF-16; .*iconv -f UTF-16LE -t UTF-8"),
    "lines that end in returns": (b"1 a b\r0 a c\r", ":1: 6 columns"),
}

BAD_ENROLMENTS: dict[str, tuple[bytes, str]] = {
    "empty": (b"\n", "empty enrolment map"),
    "a model without utterances": (b"m a b\nn\n", ":2: model 'n' has no utterances"),
    "a model twice": (b"m a\nm b\n", ":2: model 'm' repeats"),
    "an utterance twice": (b"m a a\n", ":1: utterance 'a' is there twice"),
    "Latin-1": (b"m \xe9\n", "not UTF-8"),
}

_TWO = np.array([0.5, -0.5])

BAD_SCORES: dict[str, tuple[bytes, str, str]] = {
    "text: two columns": (b"a b\n", ".txt", ":1: 2 columns"),
    "text: a word": (b"a b high\na c 0\n", ".txt", ":1: score 'high'"),
    "text: NaN": (b"a b nan\na c 0\n", ".txt", "is NaN"),
    "text: a pair twice": (b"a b 1\na b 2\na c 0\n", ".txt", ":2: this pair has a score already"),
    "text: a trial without": (b"a b 1\n", ".txt", "no score of 1 trial of .*, such as a c"),
    "text: empty": (b"", ".txt", "no score of 2 trials of"),
    "text: Latin-1": (b"\xe9 b 1\n", ".txt", "not UTF-8"),
    "npy: empty": (b"", ".npy", "no numpy file|damaged"),
    "npy: text": (b"0.5\n0.1\n", ".npy", "damaged"),
    "npy: a pickle": (pickle.dumps([0.5, 0.1]), ".npy", "damaged"),
    "npy: pickled objects": (npy(np.array([{}, None])), ".npy", "damaged"),
    "npy: cut": (npy(_TWO)[:-4], ".npy", "damaged"),
    "npy: cut in its header": (npy(_TWO)[:40], ".npy", "damaged"),
    "npy: three scores": (npy(np.zeros(3)), ".npy", r"scores \(3,\) for the 2 trials"),
    "npy: a matrix": (npy(np.zeros((2, 1))), ".npy", r"scores \(2, 1\)"),
    "npy: one number": (npy(np.array(0.5)), ".npy", r"scores \(\)"),
    "npy: words": (npy(np.array(["a", "b"])), ".npy", "scores of type"),
    "npy: complex numbers": (npy(_TWO.astype(complex)), ".npy", "scores of type complex128"),
    "npy: truths": (npy(_TWO > 0), ".npy", "scores of type bool"),
    "npy: NaN": (npy(np.array([0.5, np.nan])), ".npy", "is NaN"),
    "npy: 2^50 numbers promised": (header("(1125899906842624,)"), ".npy", "damaged"),
    "npy: a negative shape": (header("(-2,)"), ".npy", "damaged|scores"),
    "npy: a shape in words": (header("('two',)"), ".npy", "damaged"),
    "npy: unknown type": (header("(2,)", "'<q9'"), ".npy", "damaged"),
    "npy: code as header": (header("__import__('os')"), ".npy", "damaged"),
    "npz: empty": (b"", ".npz", "damaged"),
    "npz: no archive": (b"PK\x03\x04" + bytes(100), ".npz", "damaged"),
    "npz: an array itself": (npy(_TWO), ".npz", "damaged|lacks"),
    "npz: another name": (npz(values=_TWO), ".npz", "lacks the array scores"),
    "npz: no members": (zipped(), ".npz", "lacks the array scores"),
    "npz: cut": (npz(scores=_TWO)[:-30], ".npz", "damaged"),
    "npz: changed bytes": (npz(scores=_TWO).replace(b"\xe0?", b"\xe1?"), ".npz", "damaged"),
    "npz: 2^50 numbers promised": (zipped(scores=header("(1125899906842624,)")), ".npz", "damaged"),
    "npz: a member of text": (zipped(scores=b"0.5 0.1"), ".npz", "damaged|scores of type"),
    "npz: a member of nothing": (zipped(scores=b""), ".npz", "damaged|scores of type"),
    "npz: pickled objects": (npz(scores=np.array([{}, None])), ".npz", "damaged"),
    "npz: damaged compression": (
        zipped(zipfile.ZIP_DEFLATED, scores=npy(_TWO)).replace(b"NUMPY", b"MUMPS")[:60] + bytes(80),
        ".npz",
        "damaged",
    ),
}


def _row(**changes: object) -> bytes:
    entry = {"id": "1", "label": "sad", "prediction": "angry"} | changes
    return json.dumps({key: value for key, value in entry.items() if value is not ...}).encode() + b"\n"


BAD_PREDICTIONS: dict[str, tuple[bytes, str, str]] = {
    "empty": (b"", ".jsonl", "no predictions in it"),
    "not JSON": (b"{", ".jsonl", ":1: not JSON"),
    "nested without end": (b"[" * 100_000, ".jsonl", ":1: not JSON"),
    "a list": (b"[]", ".jsonl", ":1: expected a JSON object"),
    "Latin-1": (b"\xe9", ".jsonl", "not UTF-8"),
    "no id": (_row(id=...), ".jsonl", ":1: id is None"),
    "no label": (_row(label=""), ".jsonl", ":1: label is ''"),
    "prediction a number": (_row(prediction=3), ".jsonl", ":1: prediction is 3"),
    "speaker a list": (_row(speaker=[1]), ".jsonl", r":1: speaker is \[1\]"),
    "an id twice": (_row() + _row(), ".jsonl", "'1'"),
    "probabilities a list": (_row(probabilities=[1]), ".jsonl", ":1: "),
    "probabilities of other classes": (
        _row(probabilities={"sad": 0.5, "angry": 0.5}) + _row(id="2", probabilities={"sad": 1.0}),
        ".jsonl",
        ":2: the probabilities are not of the classes",
    ),
    "a probability of 3": (_row(probabilities={"sad": 3, "angry": 0}), ".jsonl", "'sad' is 3, expected .* 0 to 1"),
    "a probability in words": (_row(probabilities={"sad": "1", "angry": 0}), ".jsonl", "'sad' is '1'"),
    "a probability NaN": (_row(probabilities={"sad": float("nan"), "angry": 0}), ".jsonl", "'sad' is nan"),
    "CSV without a column": (b"id,label\n1,sad\n", ".csv", ":1: no column 'prediction'"),
    "CSV empty": (b"", ".csv", ":1: no column 'id'"),
    "CSV with an empty cell": (b"id,label,prediction\n1,,sad\n", ".csv", ":2: label is None"),
    "CSV with a cell without end": (b'id,label,prediction\n1,"' + b"x" * 200_000, ".csv", "not a table"),
    "TSV with commas": (b"id,label,prediction\n1,sad,sad\n", ".tsv", ":1: no column 'id'"),
}

_IDS, _VECTORS = np.array(["a", "b"]), np.ones((2, 3), np.float32)

BAD_EMBEDDINGS: dict[str, tuple[bytes, str, str]] = {
    "empty": (b"", ".npz", "damaged"),
    "cut": (npz(ids=_IDS, embeddings=_VECTORS)[:-60], ".npz", "damaged"),
    "no ids": (npz(embeddings=_VECTORS), ".npz", "lacks the array"),
    "a bomb": (bomb(ids=_IDS, embeddings=np.zeros((2, 1_000_000), np.float32)), ".npz", "8 MB in .* all the same"),
    "pickled ids": (npz(ids=np.array(["a", None]), embeddings=_VECTORS), ".npz", "damaged"),
    "one id": (npz(ids=np.array("a"), embeddings=_VECTORS), ".npz", "ids must be a list"),
    "three ids": (npz(ids=np.array(["a", "b", "c"]), embeddings=_VECTORS), ".npz", "3 ids for vectors"),
    "an id twice": (npz(ids=np.array(["a", "a"]), embeddings=_VECTORS), ".npz", "'a' is there twice"),
    "vectors of words": (npz(ids=_IDS, embeddings=np.array(["x", "y"])), ".npz", "no saved embeddings"),
    "complex vectors": (npz(ids=_IDS, embeddings=_VECTORS.astype(complex)), ".npz", "real numbers"),
    "NaN": (npz(ids=_IDS, embeddings=_VECTORS * np.nan), ".npz", "a NaN or an infinity"),
    "zeros": (npz(ids=_IDS, embeddings=_VECTORS * 0), ".npz", "all zeros"),
    "no vectors": (npz(ids=_IDS[:0], embeddings=_VECTORS[:0]), ".npz", "no embeddings"),
    "safetensors: empty": (b"", ".safetensors", "no saved embeddings"),
    "safetensors: a header of 2^60 bytes": ((2**60).to_bytes(8, "little"), ".safetensors", "no saved embeddings"),
    "safetensors: no ids": ((2).to_bytes(8, "little") + b"{}", ".safetensors", "no saved embeddings"),
}
