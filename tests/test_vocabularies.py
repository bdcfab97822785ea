"""Vocabularies of several kinds: characters with and without words, phonemes, subwords; and their files."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from speech_adapters.errors import TextError
from speech_adapters.heads.base import head_from_dict
from speech_adapters.heads.ctc import CTCHead
from speech_adapters.heads.decoding import BeamSearch, greedy_decode_with_timestamps
from speech_adapters.text import Vocabulary, normalize

GERMAN = ["die größe der straße", "schöne grüße aus ulm", "über den großen fluss", "die straße ist groß"] * 5
CHINESE = ["你好世界", "世界很大", "你很好"]
PHONEMES = ["HH AH0 L OW1", "W ER1 L D", "tʃ iː z"]

KINDS = {
    "words": Vocabulary.from_texts(GERMAN),
    "no words": Vocabulary.from_texts(CHINESE),
    "phonemes": Vocabulary.from_symbols(PHONEMES),
    "subwords": Vocabulary.from_subwords(GERMAN, 40),
    "digraphs": Vocabulary(("<pad>", "|", "c", "h", "ch", "a")),
}
TEXTS = {
    "words": GERMAN, "no words": CHINESE, "phonemes": PHONEMES, "subwords": [*GERMAN, "der fluss"],
    "digraphs": ["cha ach", "h c ch"],
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_texts_come_back(kind):
    vocabulary = KINDS[kind]
    for text in TEXTS[kind]:
        assert vocabulary.decode(vocabulary.encode(text)) == text
        spaced = f" {text.replace(' ', '  ')}\n"  # what the normaliser "none" leaves
        assert vocabulary.encode(spaced) == vocabulary.encode(text)


@pytest.mark.parametrize("kind", KINDS)
def test_hugging_face_reads_the_files_and_so_do_we(kind, tmp_path):
    from transformers import AutoTokenizer

    vocabulary = KINDS[kind]
    vocabulary.save(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "wav2vec2"}')
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.pad_token_id == vocabulary.blank_id and Vocabulary.load(tmp_path) == vocabulary
    for text in TEXTS[kind]:
        ids = vocabulary.encode(text)
        if kind != "digraphs":  # that tokenizer drops spaces around tokens of several letters
            assert tokenizer(text, add_special_tokens=False).input_ids == ids
        spread = [i for one in ids for i in (one, one, vocabulary.blank_id)]
        assert tokenizer.decode(spread) == text


@pytest.mark.parametrize("kind", KINDS)
def test_heads_keep_them(kind):
    config = CTCHead(KINDS[kind], normalizer="none")
    assert head_from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_a_head_from_before_there_were_other_kinds_loads():
    described = CTCHead().to_dict()
    del described["vocabulary"]["separator"], described["vocabulary"]["scores"], described["accept_letters"]
    assert head_from_dict(described) == CTCHead()


def test_words_are_not_guessed_where_there_are_none():
    assert KINDS["no words"].delimiter is None and not KINDS["no words"].has_words
    assert "CER is the measure" in KINDS["no words"].note and "WER counts wrong symbols" in KINDS["phonemes"].note
    assert KINDS["words"].note == KINDS["subwords"].note == ""
    with pytest.raises(TextError, match="symbols ' ' are not among"):
        KINDS["no words"].encode("你 好")


@pytest.mark.parametrize(
    ("vocabulary", "text", "expected"),
    [
        (Vocabulary(("<pad>", "|", "B", "A", "D", "b", "a", "d")), "Bad Dad", ("none", "Bad Dad")),
        (Vocabulary(("<pad>", "|", "Ä", "B", "R", "Y")), "Bär", ("basic-upper", "BÄR")),
        (Vocabulary(("<pad>", "|", "i", "b", "İ")), "Bİ", ("basic", None)),
        (Vocabulary(("<pad>", "a", "S", "ts."), delimiter=None, separator=" "), "S a ts.", ("none", "S a ts.")),
        (Vocabulary.wav2vec2(), "Café, bad!", ("librispeech", "CAFE BAD")),
        (Vocabulary(("<pad>", "你", "好"), delimiter=None), "你好", ("basic", "你好")),
    ],
)
def test_texts_are_written_as_the_symbols_are(vocabulary, text, expected):
    normalizer, written = expected
    assert vocabulary.normalizer == normalizer
    if written is not None:
        assert vocabulary.decode(vocabulary.encode(normalize(text, normalizer))) == written


@pytest.mark.parametrize(
    ("vocab", "config", "expected"),
    [
        (["<pad>", "|", "a", "b"], None, {"delimiter": "|"}),
        (["<pad>", "你", "好"], None, {"delimiter": None}),
        (["<pad>", "你", "好"], {"word_delimiter_token": "|"}, {"delimiter": None}),
        (["<pad>", "<unk>", "AA", "B"], None, {"delimiter": None, "separator": " "}),
        (["[PAD]", "a", " "], {"word_delimiter_token": " "}, {"delimiter": " ", "blank": "[PAD]"}),
        (
            ["<pad>", "a", "b"],
            {"tokenizer_class": "Wav2Vec2PhonemeCTCTokenizer"},
            {"delimiter": None, "separator": " "},
        ),
    ],
)
def test_a_vocabulary_of_ones_own(vocab, config, expected, tmp_path):
    file = tmp_path / "vocab.json"
    file.write_text(json.dumps({token: i for i, token in enumerate(vocab)}))
    if config is not None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert Vocabulary.load(file) == Vocabulary(tuple(vocab), **{"blank": "<pad>", **expected})


@pytest.mark.parametrize(
    ("vocab", "config", "said"),
    [
        (["<pad>", "|", "a"], {"replace_word_delimiter_char": ""}, "space between words here, where .* writes ''"),
        (["<pad>", "|", "a", "A"], {"do_lower_case": True}, "letters in both cases, which texts keep here"),
        (
            ["<pad>", "|", "a"],
            {"tokenizer_class": "Wav2Vec2PhonemeCTCTokenizer", "word_delimiter_token": "|"},
            r"'\|' between words is a symbol of texts here",
        ),
    ],
)
def test_what_a_tokenizer_writes_otherwise_is_said(vocab, config, said, tmp_path):
    (tmp_path / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(vocab)}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.warns(UserWarning, match=said):
        assert Vocabulary.load(tmp_path).tokens == tuple(vocab)


def test_pieces_that_belong_to_another_vocabulary(tmp_path):
    KINDS["subwords"].save(tmp_path)
    KINDS["words"].save(tmp_path / "other")
    (tmp_path / "vocab.json").write_bytes((tmp_path / "other" / "vocab.json").read_bytes())
    with pytest.raises(TextError, match="its pieces are not those of vocab.json"):
        Vocabulary.load(tmp_path)


@given(st.lists(st.text("abcdefg", min_size=1, max_size=8), min_size=1, max_size=8))
def test_subwords_split_as_sentencepiece_does(words):
    import sentencepiece

    text = " ".join(words)
    vocabulary, model = _abc()
    theirs = sentencepiece.SentencePieceProcessor(model_proto=model)
    ours = [vocabulary.tokens[i] for i in vocabulary.encode(text)]
    scores = dict(zip(vocabulary.tokens, vocabulary.scores, strict=True))
    reference = theirs.encode(text, out_type=str)
    assert "".join(ours) == "".join(reference)
    assert sum(scores[piece] for piece in ours) == pytest.approx(sum(scores[piece] for piece in reference), abs=1e-3)


def _abc(kept=[]):  # noqa: B006  (learnt once)
    """A vocabulary of random words, and sentencepiece's own model of the same pieces."""
    if not kept:
        import io
        import random

        import sentencepiece

        draw = random.Random(0)
        texts = [" ".join("".join(draw.choices("abcdefg", k=draw.randint(1, 6))) for _ in range(6)) for _ in range(80)]
        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts), model_writer=model, model_type="unigram", vocab_size=60,
            hard_vocab_limit=False, character_coverage=1.0, normalization_rule_name="identity", minloglevel=2,
        )  # fmt: skip
        kept += [Vocabulary.from_subwords(texts, 60), model.getvalue()]
    return kept


@pytest.mark.parametrize(
    ("texts", "size", "message"),
    [
        ([" "], 40, "without characters"),
        (["a▁b"], 40, "opens a word in subwords"),
        (["the quick brown fox jumps over the lazy dog"], 5, "5 subwords cannot be learnt from 1 texts"),
    ],
)
def test_subwords_that_cannot_be_learnt(texts, size, message):
    with pytest.raises(TextError, match=message):
        Vocabulary.from_subwords(texts, size)


def test_a_symbol_no_subword_has_is_named():
    with pytest.raises(TextError, match="utterance 'u1': symbols 'é' are not among"):
        KINDS["subwords"].encode("die é", "u1")


def test_the_wrong_case_is_recognised():
    with pytest.raises(TextError, match="it has them in upper case: choose a normaliser that writes them so"):
        Vocabulary.wav2vec2().encode("hello")


def test_symbols_that_cannot_be_phonemes():
    for texts, message in ((["a [SPN]"], "look like special tokens"), ([" "], "without symbols")):
        with pytest.raises(TextError, match=message):
            Vocabulary.from_symbols(texts)


def one_hot(vocabulary: Vocabulary, ids: list[int]) -> torch.Tensor:
    frames = [i for one in ids for i in (one, vocabulary.blank_id)]
    return 20.0 * torch.nn.functional.one_hot(torch.tensor([frames]), len(vocabulary)).float()


@pytest.mark.parametrize(
    ("kind", "text", "words"),
    [
        ("words", "die straße", ["die", "straße"]),
        ("no words", "你好世", ["你", "好", "世"]),
        ("phonemes", "HH AH0", ["HH", "AH0"]),
        ("subwords", "der fluss", ["der", "fluss"]),
    ],
)
def test_words_have_times_in_every_kind(kind, text, words):
    vocabulary = KINDS[kind]
    ids = vocabulary.encode(text)
    logits = one_hot(vocabulary, ids)
    lengths = torch.tensor([2 * len(ids)])
    timed = greedy_decode_with_timestamps(logits, lengths, vocabulary)[0]
    assert timed.text == text and [word.text for word in timed.words] == words
    assert "".join(segment.text for segment in timed.characters) == text.replace(" ", "")
    starts = [segment.start for segment in timed.characters]
    assert starts == sorted(starts) and timed.words[0].start == 0
    assert BeamSearch(vocabulary, beam_size=4)(logits, lengths) == [text]


def test_a_word_language_model_needs_words(tmp_path):
    pytest.importorskip("flashlight")
    lm = tmp_path / "lm.arpa"
    lm.write_text("\\data\\\nngram 1=3\n\n\\1-grams:\n-1 <s>\n-1 </s>\n-1 die\n\n\\end\\\n")
    for kind in ("no words", "subwords", "phonemes"):
        with pytest.raises(TextError, match="needs a vocabulary of characters with a word delimiter"):
            BeamSearch(KINDS[kind], lm_path=lm)
