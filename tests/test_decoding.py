"""Greedy decoding and beam search with a language model."""

from __future__ import annotations

import gzip
import math
import sys
from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from speech_adapters.errors import InputError, TextError
from speech_adapters.heads.decoding import (
    BeamSearch,
    beam_search,
    greedy_decode,
    greedy_decode_with_timestamps,
    prefix_beam_search,
)
from speech_adapters.text import Vocabulary

VOCABULARY = Vocabulary.wav2vec2()


def frames(symbols: str, probability: float = 0.9, vocabulary: Vocabulary = VOCABULARY) -> torch.Tensor:
    """Logits (T, V): one frame a symbol, ``_`` for blank; the symbol gets ``probability``, others the rest."""
    ids = [vocabulary.blank_id if s == "_" else vocabulary.tokens.index(s) for s in symbols]
    logits = torch.full((len(ids), len(vocabulary)), (1 - probability) / (len(vocabulary) - 1))
    logits[range(len(ids)), ids] = probability
    return logits.log()


def collapse(path: tuple[int, ...], blank: int = 0) -> tuple[int, ...]:
    return tuple(s for i, s in enumerate(path) if s != blank and (i == 0 or s != path[i - 1]))


# --- greedy --------------------------------------------------------------------------------------------------------


def test_greedy_merges_repeats_and_splits_at_blanks():
    rows = ["|HH_EL_LLO||", "AA__A_|B____", "____________"]
    texts = greedy_decode(torch.stack([frames(row) for row in rows]), torch.tensor([12, 12, 12]), VOCABULARY)
    assert texts == ["HELLO", "AA B", ""]


def test_greedy_reads_only_valid_frames_and_starts_each_utterance_afresh():
    logits = torch.stack([frames("ABCA"), frames("AAAA"), frames("ABAB")])
    assert greedy_decode(logits, torch.tensor([4, 2, 0]), VOCABULARY) == ["ABCA", "A", ""]


def test_greedy_equals_hugging_face(tmp_path):
    from transformers import Wav2Vec2CTCTokenizer

    VOCABULARY.save(tmp_path)
    tokenizer = Wav2Vec2CTCTokenizer.from_pretrained(tmp_path)
    ids = torch.randint(5, (40, 60), generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([0, 4, 5, 6, 7])[ids]
    ours = greedy_decode(F.one_hot(ids, 32).half(), torch.full((40,), 60), VOCABULARY)
    assert ours == [" ".join(text.split()) for text in tokenizer.batch_decode(ids)]


def test_timestamps_equal_hugging_face(tmp_path):
    from transformers import Wav2Vec2CTCTokenizer

    VOCABULARY.save(tmp_path)
    tokenizer = Wav2Vec2CTCTokenizer.from_pretrained(tmp_path)
    logits = frames("__HH_I_||_TTH_ERE__E|")
    timed = greedy_decode_with_timestamps(logits[None], torch.tensor([len(logits)]), VOCABULARY)[0]
    theirs = tokenizer.decode(logits.argmax(-1), output_word_offsets=True, output_char_offsets=True)
    words = [(w["word"], w["start_offset"], w["end_offset"]) for w in theirs.word_offsets]
    characters = [(c["char"], c["start_offset"], c["end_offset"]) for c in theirs.char_offsets if c["char"] != " "]
    for ours, expected in ((timed.words, words), (timed.characters, characters)):
        assert [(s.text, round(s.start / 0.02), round(s.end / 0.02)) for s in ours] == expected


def test_timestamps_carry_times_text_and_confidence():
    logits = torch.cat([frames("_A", 0.8), frames("A_|", 0.5), frames("B_", 0.25)])
    first, second, empty = greedy_decode_with_timestamps(
        torch.stack([logits, logits, logits]), torch.tensor([7, 3, 0]), VOCABULARY, seconds_per_frame=0.1
    )
    assert [(s.text, round(s.start, 6), round(s.end, 6)) for s in first.words] == [("A", 0.1, 0.3), ("B", 0.5, 0.6)]
    assert first.words[0].confidence == pytest.approx(math.sqrt(0.8 * 0.5), rel=1e-5)
    assert first.words[1].confidence == pytest.approx(0.25, rel=1e-5)
    assert (first.text, second.text, empty.text, empty.words) == ("A B", "A", "", ())
    assert greedy_decode(logits[None], torch.tensor([7]), VOCABULARY) == [first.text]


# --- beam search without a language model --------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_prefix_beam_search_is_exact_with_a_wide_beam(seed):
    log_probs = torch.randn(5, 4, generator=torch.Generator().manual_seed(seed)).mul(2).log_softmax(-1).double()
    exact: dict[tuple[int, ...], float] = {}
    for path in product(range(4), repeat=5):
        text = collapse(path)
        exact[text] = exact.get(text, 0.0) + log_probs[range(5), path].sum().exp().item()
    found = prefix_beam_search(log_probs.numpy(), blank=0, beam_size=10_000)
    assert {text for text, _ in found} == set(exact)
    for text, log_prob in found:
        assert math.exp(log_prob) == pytest.approx(exact[text], rel=1e-9)
    assert [log_prob for _, log_prob in found] == sorted((log_prob for _, log_prob in found), reverse=True)


def test_prefix_beam_search_finds_what_the_best_path_misses():
    # The best path is blank, blank (0.36), yet "A" is more probable: 0.64 over its three alignments.
    log_probs = np.log([[0.6, 0.4], [0.6, 0.4]])
    assert prefix_beam_search(log_probs, blank=0)[0] == ((1,), pytest.approx(math.log(0.64)))


def test_beam_search_on_a_batch():
    logits = torch.stack([frames("HH_EL_LLO"), frames("A|B______")])
    assert beam_search(logits, torch.tensor([9, 3]), VOCABULARY, beam_size=8) == ["HELLO", "A B"]
    assert beam_search(logits, torch.tensor([2, 0]), VOCABULARY) == ["H", ""]
    with pytest.raises(InputError, match="beam_size=0"):
        BeamSearch(VOCABULARY, beam_size=0)


# --- beam search with a language model -----------------------------------------------------------------------------

# log10: P(CAR) - P(CAT) = 2 after THE
ARPA = """\\data\\
ngram 1=6
ngram 2=2

\\1-grams:
-1.0\t<unk>
-99\t<s>\t0.0
-1.0\t</s>
-1.0\tthe\t0.0
-3.0\tcat
-3.0\tcar

\\2-grams:
-2.5\tthe cat
-0.5\tthe car

\\end\\
"""


@pytest.fixture
def arpa(tmp_path):
    path = tmp_path / "lm.arpa"
    path.write_text(ARPA)
    return path


def ambiguous() -> tuple[torch.Tensor, torch.Tensor]:
    """The words "THE CAT", in which the last letter may be an R; and "CAT" alone, without a final delimiter."""
    last = frames("T", 0.8)
    last[0, VOCABULARY.tokens.index("R")] = math.log(0.1)
    sentence = torch.cat([frames("THE|CA"), last])
    word = torch.cat([frames("CAT"), frames("____")])
    return torch.stack([sentence, word]), torch.tensor([7, 7])


def test_language_model_decides_at_the_documented_weight(arpa):
    pytest.importorskip("flashlight", reason="the extra 'decode' is not installed")
    logits, lengths = ambiguous()
    targets = [torch.tensor(VOCABULARY.encode(text)) for text in ("THE CAT", "THE CAR")]
    log_probs = logits[0].log_softmax(-1)
    cat, car = (-F.ctc_loss(log_probs, t, (7,), (7,), reduction="sum").item() for t in targets)
    flip = (cat - car) / (2 * math.log(10))  # alpha at which the model's 2 decades outweigh the sound
    for alpha, expected in ((0.0, "THE CAT"), (0.9 * flip, "THE CAT"), (1.1 * flip, "THE CAR")):
        assert beam_search(logits, lengths, VOCABULARY, lm_path=arpa, alpha=alpha, beta=0.0) == [expected, "CAT"]


def test_the_padded_counts_of_irstlm_are_read(arpa):
    pytest.importorskip("flashlight", reason="the extra 'decode' is not installed")
    arpa.write_text(ARPA.replace("ngram 1=6", "ngram  1=         6"))
    logits, lengths = ambiguous()
    assert beam_search(logits, lengths, VOCABULARY, lm_path=arpa, alpha=0.0, beta=0.0) == ["THE CAT", "CAT"]


def test_only_words_of_the_lexicon_come_out(arpa, tmp_path):
    pytest.importorskip("flashlight", reason="the extra 'decode' is not installed")
    lexicon = tmp_path / "words.txt"
    lexicon.write_text("the\ncar\nnaïve\n")  # the last cannot be spelled and is left out
    logits, lengths = ambiguous()
    decoder = BeamSearch(VOCABULARY, lm_path=arpa, lexicon_path=lexicon, alpha=0.0, beta=0.0)
    assert decoder(logits, lengths) == ["THE CAR", "CAR"]
    lexicon.write_text("naïve\n")
    with pytest.raises(TextError, match="spells none of its 1 words"):
        BeamSearch(VOCABULARY, lm_path=arpa, lexicon_path=lexicon)


def test_silence_stays_silent_with_a_language_model(arpa):
    pytest.importorskip("flashlight", reason="the extra 'decode' is not installed")
    logits = torch.stack([frames("____|___"), frames("THE_____")])
    assert beam_search(logits, torch.tensor([8, 0]), VOCABULARY, lm_path=arpa) == ["", ""]


@pytest.mark.parametrize("preface", [b"\xef\xbb\xbf", b"# made by hand\n\n", b"\xef\xbb\xbf# by hand\n"])
def test_what_stands_before_the_data_is_passed_over(arpa, tmp_path, preface: bytes):
    marked = tmp_path / "marked.arpa"
    marked.write_bytes(preface + arpa.read_bytes())
    logits, lengths = frames("TH_E_|_C_A_T")[None], torch.tensor([12])
    assert beam_search(logits, lengths, VOCABULARY, lm_path=marked) == beam_search(
        logits, lengths, VOCABULARY, lm_path=arpa
    )


def test_compressed_models_are_read(arpa):
    pytest.importorskip("flashlight", reason="the extra 'decode' is not installed")
    packed = arpa.with_suffix(".arpa.gz")
    packed.write_bytes(gzip.compress(ARPA.encode()))
    assert beam_search(*ambiguous(), VOCABULARY, lm_path=packed, alpha=2.0)[0] == "THE CAR"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        (b"", "not an ARPA file"),
        (b"the cat\n", "not an ARPA file"),
        (b"mmap lm http://kheafield.com/code format version 5\n\0", "lexicon_path="),
        (ARPA[:60].encode(), "cut short"),
        (ARPA[:-40].encode(), "cut short"),
        (b"\xff\xfe" + ARPA.encode(), "cut short"),
    ],
)
def test_a_bad_model_is_found_before_decoding(tmp_path, content, message):
    path = tmp_path / "bad.arpa"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(TextError, match=message) as error:
        BeamSearch(VOCABULARY, lm_path=path)
    assert str(path) in str(error.value)


def test_a_cut_compressed_model_is_found(tmp_path):
    path = tmp_path / "bad.arpa.gz"
    path.write_bytes(gzip.compress(ARPA.encode())[:-20])
    with pytest.raises(TextError, match="cut short"):
        BeamSearch(VOCABULARY, lm_path=path)


def test_a_missing_extra_is_named(arpa, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchaudio.models.decoder", None)
    with pytest.raises(InputError, match=r"pip install speech-adapters\[decode\]"):
        BeamSearch(VOCABULARY, lm_path=arpa)
