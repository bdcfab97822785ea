"""Normalisers for any language, tables of one's own, and what they do to single letters."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speech_adapters.errors import InputError, TextError
from speech_adapters.heads import CTCHead
from speech_adapters.heads.base import head_from_dict
from speech_adapters.text import (
    ReplacementTable,
    changes,
    check_letters,
    choose_normalizer,
    describe_changes,
    normalize,
    normalizer_name,
)

#: Words as they are written in many scripts; what "basic" makes of them.
SCRIPTS = {
    "Übergrößen, Äpfel & Öl!": "übergrößen äpfel & öl",
    "L’été — c'est “l’œuvre” d’Ève.": "l'été c'est l'œuvre d'ève",
    "你好，世界！": "你好 世界",
    "नमस्ते दुनिया।": "नमस्ते दुनिया",
    "مرحبًا، كيف حالك؟": "مرحبًا كيف حالك",
    "می\u200cخواهم.": "می\u200cخواهم",
    "צה״ל אמר: שלום": "צה״ל אמר שלום",
    "Комп'ютер, об’єкт": "комп'ютер об'єкт",
    "สวัสดีครับ": "สวัสดีครับ",
    "안녕하세요?": "안녕하세요",
    "Đây là tiếng Việt…": "đây là tiếng việt",
    "una col·lecció": "una col·lecció",
    "ΟΔΟΣ ΟΔΥΣΣΕΩΣ": "οδος οδυσσεως",
    "co\u00adoperate  'rock’ 50 %": "cooperate rock 50 %",
}


def letters(text: str) -> str:
    """Letters, marks and digits, decomposed, in the case that normalisers may change."""
    text = unicodedata.normalize("NFD", unicodedata.normalize("NFC", text).lower())
    return "".join(symbol for symbol in text if unicodedata.category(symbol)[0] in "LMN")


@pytest.mark.parametrize(("text", "expected"), SCRIPTS.items())
def test_basic_in_many_scripts(text, expected):
    assert normalize(text, "basic") == unicodedata.normalize("NFC", expected)


@given(st.text())
def test_basic_keeps_every_letter_and_is_idempotent(text):
    once = normalize(text, "basic")
    assert letters(once) == letters(text)
    assert normalize(once, "basic") == once
    assert unicodedata.is_normalized("NFC", once)
    kept = {symbol for symbol in once if unicodedata.category(symbol)[0] == "P"}
    assert kept <= set("'&%@#·׳״")


def test_every_apostrophe_is_one_at_once():
    for apostrophe in "'‘’‛ʼ´`＇｀":
        assert normalize(f"it{apostrophe}s", "librispeech") == "IT'S"
    assert normalize("ŉ", "librispeech") == "'N"


@given(st.text(st.characters(codec="utf-8")))
def test_composed_and_decomposed_texts_are_one(text):
    composed, decomposed = (unicodedata.normalize(form, text) for form in ("NFC", "NFD"))
    assert normalize(composed, "basic") == normalize(decomposed, "basic")


def test_whisper_english_is_whispers_own():
    from transformers.models.whisper.english_normalizer import EnglishTextNormalizer
    from whisper_normalizer.english import EnglishSpellingNormalizer

    text = "I've got twenty-one colours, Mr. Smith; isn't it $5?"
    assert normalize(text, "whisper-english") == "i have got 21 colors mister smith is not it $5"
    theirs = EnglishTextNormalizer(EnglishSpellingNormalizer().mapping)
    assert theirs(text) == normalize(text, "whisper-english")


def table(tmp_path, content: str, name: str = "german.yaml"):
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    return path


def test_a_table_of_ones_own_is_a_file_and_travels_with_the_head(tmp_path):
    path = table(tmp_path, "replace:\n  '&': ' und '\n  ß: ss\n  Dr.: Doktor\n  1: eins\nthen: basic\n")
    own = choose_normalizer(str(path))
    assert own == ReplacementTable(
        name="german", replace={"&": " und ", "ß": "ss", "Dr.": "Doktor", "1": "eins"}, then="basic"
    )
    assert normalize("Dr. Groß & Söhne, 1", own) == "doktor gross und söhne eins"
    head = head_from_dict(CTCHead(normalizer=own).to_dict())
    assert head.normalizer == own and normalizer_name(head.normalizer) == "german"
    assert choose_normalizer(str(table(tmp_path, '{"replace": {"a": "b"}, "then": "none"}', "x.json"))).then == "none"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read as a table of replacements .No such file"),
        ("- a\n", "has the keys replace"),
        ("replace: {}\n", "give some"),
        ("replace: {a: aa}\n", "'a' becomes 'aa', which the table would change again"),
        ("replace: {a: b}\nthen: bassic\n", "normalizer='bassic' is unknown"),
        ("replace: {a: b}\nthan: basic\n", "unknown key 'than'.* did you mean 'then'"),
        ("replace: [a, b]\n", "replace: expected keys with values"),
        ("replace: {a: b\n", "cannot be read as a table"),
    ],
)
def test_unusable_tables(tmp_path, content, message):
    path = tmp_path / "own.yaml" if content is None else table(tmp_path, content, "own.yaml")
    with pytest.raises(InputError, match=message):
        choose_normalizer(str(path))


def test_a_saved_head_runs_no_code_that_it_names():
    described = CTCHead().to_dict()
    for name in ("os:system", "os.system", "builtins:print"):
        with pytest.raises(InputError, match="is unknown: choose one of"):
            head_from_dict({**described, "normalizer": name})


def test_an_installed_package_offers_its_own(monkeypatch):
    from importlib.metadata import EntryPoint

    from speech_adapters.text import normalizers

    def installed(*, group, name):
        assert group == "speech_adapters.normalizers"
        return [EntryPoint(name, "unicodedata:name", group)] if name == "acme" else []

    monkeypatch.setattr(normalizers, "entry_points", installed)
    assert normalize("é", choose_normalizer("acme")) == "LATIN SMALL LETTER E WITH ACUTE"


def test_umlauts_are_not_lost_in_silence():
    texts = ["Übergröße", "schöne Bücher"]
    found = {str(change) for change in changes(texts, "librispeech")}
    assert found == {"ö -> O (2x)", "Ü -> U (1x)", "ü -> U (1x)", "ß -> SS (1x)"}  # the last one is its upper case
    with pytest.raises(TextError) as error:
        check_letters(texts, "librispeech", "", "train.jsonl")
    said = str(error.value)
    assert said.startswith("train.jsonl: the normaliser 'librispeech' would lose letters: ö -> O (2x)")
    assert "normalizer=basic" in said and "accept_letters=öÜü" in said
    check_letters(texts, "librispeech", "öÜü", "train.jsonl")
    check_letters(texts, "librispeech", "all", "train.jsonl")
    check_letters(texts, "basic", "", "train.jsonl")
    meant = ReplacementTable(name="own", replace={"ö": "oe", "ü": "ue", "Ü": "UE"}, then="librispeech")
    check_letters(texts, meant, "", "train.jsonl")
    assert normalize(texts[0], meant) == "UEBERGROESSE"


def test_marks_are_letters_too():
    with pytest.raises(TextError, match="x: the normaliser 'librispeech' would lose letters: U\\+0941 dropped"):
        check_letters(["\u0939\u0941"], "librispeech", "", "x")  # a vowel sign of Hindi


def test_what_else_changes_is_shown():
    assert describe_changes(changes(["Well, well. It’s 3.", "a, b"], "basic"), "basic") == (
        "normaliser basic: , dropped (2x), . dropped (2x), ’ -> ' (1x)"
    )
    assert describe_changes(changes(["A B'C"], "librispeech"), "librispeech") == ""


def test_cases_that_cannot_be_told_again_are_said_and_accepted():
    found = changes(["Straße, STRASSE", "λόγος"], "basic-upper")
    assert sorted(map(str, found)) == [", dropped (1x)", "ß -> SS (1x)", "ς -> Σ (1x)"]
    check_letters(["Straße", "λόγος"], "basic-upper", "", "here")
