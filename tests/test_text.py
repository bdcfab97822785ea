"""Normalisers, the vocabulary and its files."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speech_adapters.errors import TextError
from speech_adapters.text import NORMALIZERS, Vocabulary, normalize

# facebook/wav2vec2-base-960h, vocab.json
WAV2VEC2 = {
    "<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "|": 4, "E": 5, "T": 6, "A": 7, "O": 8, "N": 9, "I": 10, "H": 11,
    "S": 12, "R": 13, "D": 14, "L": 15, "U": 16, "M": 17, "W": 18, "C": 19, "F": 20, "G": 21, "Y": 22, "P": 23,
    "B": 24, "V": 25, "K": 26, "'": 27, "X": 28, "J": 29, "Q": 30, "Z": 31,
}  # fmt: skip
TRANSCRIPTS = st.text(alphabet="ABCDEFGHIJKLMNOPQRSTUVWXYZ' ").map(lambda text: " ".join(text.split()))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello, world!", "HELLO WORLD"),
        ("  it’s\ta\n‘well-known’ fact — isn`t it? ", "IT'S A 'WELL KNOWN' FACT ISN'T IT"),
        ("fiancée (naïve)", "FIANCEE NAIVE"),
        ("room 3 & 4", "ROOM 3 & 4"),  # what has to be spoken stays, so that it is noticed
        ("", ""),
    ],
)
def test_librispeech_normalizer(text, expected):
    assert normalize(text) == expected


@given(st.text())
def test_librispeech_normalizer_is_idempotent(text):
    once = normalize(text)
    assert normalize(once) == once


def test_normalizers_are_named(monkeypatch):
    assert normalize(" As  it is", "none") == " As  it is"
    with pytest.raises(TextError, match="normalizer='librspeech'.*'librispeech', 'none'"):
        normalize("x", "librspeech")
    monkeypatch.setitem(NORMALIZERS, "mine", str.lower)
    assert normalize("A", "mine") == "a"


def test_default_vocabulary_is_that_of_wav2vec2():
    vocabulary = Vocabulary.wav2vec2()
    assert {token: i for i, token in enumerate(vocabulary.tokens)} == WAV2VEC2
    assert (vocabulary.blank_id, vocabulary.delimiter_id, len(vocabulary)) == (0, 4, 32)


@given(TRANSCRIPTS)
def test_decode_inverts_encode(text):
    vocabulary = Vocabulary.wav2vec2()
    assert vocabulary.decode(vocabulary.encode(text)) == text


def test_special_tokens_leave_no_trace():
    vocabulary = Vocabulary.wav2vec2()
    assert vocabulary.decode([4, 1, 7, 0, 3, 7, 4, 4, 2, 6]) == "AA T"


def test_vocabulary_from_texts():
    vocabulary = Vocabulary.from_texts(["grüße", "aus ulm"])
    assert vocabulary.tokens == ("<pad>", "<s>", "</s>", "<unk>", "|", *"aeglmrsußü")
    assert vocabulary.decode(vocabulary.encode("grüße aus")) == "grüße aus"


@pytest.mark.parametrize(
    ("texts", "message"), [(["", " "], "without characters"), (["a|b"], "word delimiter"), (["a\tb"], "unprintable")]
)
def test_vocabulary_from_unusable_texts(texts, message):
    with pytest.raises(TextError, match=message):
        Vocabulary.from_texts(texts)


def test_unknown_symbols_are_named_with_utterance_and_remedy():
    with pytest.raises(TextError) as error:
        Vocabulary.wav2vec2().encode("ROOM 3É3|", source="utt-7")
    message = str(error.value)
    assert "'utt-7'" in message and "'3' '|' 'É'" in message
    assert "librispeech" in message and "from_texts" in message


def test_dict_round_trip():
    vocabulary = Vocabulary(("a", "b", "[UNK]", "[PAD]", "_"), blank="[PAD]", delimiter="_")
    assert Vocabulary.from_dict(json.loads(json.dumps(vocabulary.to_dict()))) == vocabulary
    assert vocabulary.blank_id == 3


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"tokens": ["<pad>", "|", "a", "a"]}, r"\['a'\] occur twice"),
        ({"tokens": ["|", "a"]}, "blank '<pad>'"),
        ({"tokens": ["<pad>", "a"]}, r"delimiter '\|'"),
    ],
)
def test_malformed_vocabularies(values, message):
    with pytest.raises(TextError, match=message):
        Vocabulary.from_dict(values)


@pytest.mark.parametrize(
    "vocabulary",
    [
        Vocabulary.wav2vec2(),
        Vocabulary.from_texts(["grüße aus ulm"]),
        Vocabulary((*"abc", "|", "[UNK]", "[PAD]"), blank="[PAD]"),
    ],
    ids=["wav2vec2", "from_texts", "blank last"],
)
def test_saved_vocabulary_is_a_hugging_face_tokenizer(vocabulary, tmp_path):
    from transformers import Wav2Vec2CTCTokenizer

    vocabulary.save(tmp_path)
    tokenizer = Wav2Vec2CTCTokenizer.from_pretrained(tmp_path)
    assert tokenizer.pad_token_id == vocabulary.blank_id
    letters = [token for token in vocabulary.tokens if len(token) == 1 and token != vocabulary.delimiter]
    text = "".join(letters[:3]) + " " + "".join(letters[::-1]) + " " + letters[0] * 2
    ids = vocabulary.encode(text)
    assert tokenizer(text).input_ids == ids
    assert tokenizer.decode(ids, group_tokens=False) == vocabulary.decode(ids) == text
    assert Vocabulary.load(tmp_path) == vocabulary
    (tmp_path / "tokenizer_config.json").unlink()
    assert Vocabulary.load(tmp_path / "vocab.json") == vocabulary


def test_another_blank_and_delimiter_are_kept(tmp_path):
    vocabulary = Vocabulary((*"ab_", "<blank>"), blank="<blank>", delimiter="_")
    vocabulary.save(tmp_path)
    assert Vocabulary.load(tmp_path) == vocabulary
    assert vocabulary.decode([0, 2, 2, 3, 1]) == "a b"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        ('{"<pad>": 0, "|"', "not JSON"),
        ("[1]", "JSON object"),
        ('{"<pad>": 0, "|": 2}', "ids must be whole numbers, 0 to 1,"),
        ('{"eng": {"<pad>": 0}, "deu": {"<pad>": 0}}', "one vocabulary a language"),
    ],
)
def test_unreadable_vocabulary_files(tmp_path, content, message):
    file = tmp_path / "vocab.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(TextError, match=message) as error:
        Vocabulary.load(file)
    assert str(file) in str(error.value)
