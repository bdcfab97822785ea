"""Subwords: the pieces of a unigram model (Kudo, 2018), learnt from text by ``sentencepiece``.

``▁`` opens a word, as in all its models. Pieces and scores are plain data in a vocabulary, so that a head needs no
other file; the split of a text is the most probable one, found by ``tokenizers``.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from speech_adapters.errors import TextError

if TYPE_CHECKING:
    from tokenizers.models import Unigram

WORD = "▁"
"""Opens a word."""

NEVER = -1e4
"""Score of special tokens: they are no part of any text."""


def train_subwords(texts: Iterable[str], size: int) -> list[tuple[str, float]]:
    """About ``size`` subwords learnt from texts (normalise them first), each with its log probability.

    Fewer than ``size`` where the texts have no more; every character of the texts is one of them, so that all that
    they are made of can be written.

    Raises:
        TextError: texts without characters or with ``▁``, or a size below the number of characters.
    """
    import sentencepiece

    lines = [text for text in (" ".join(text.split()) for text in texts) if text]
    if not lines:
        raise TextError("subwords cannot be learnt from texts without characters; give transcripts")
    if any(WORD in line for line in lines):
        raise TextError(f"the texts hold {WORD!r}, which opens a word in subwords; remove it with a normaliser first")
    characters = {symbol for line in lines for symbol in line}
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=model,
            model_type="unigram",
            vocab_size=size,
            hard_vocab_limit=False,
            character_coverage=1.0,
            normalization_rule_name="identity",
            max_sentence_length=1 << 20,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise TextError(
            f"{size} subwords cannot be learnt from {len(lines)} texts of {len(characters)} different characters; "
            f"choose more than {len(characters) + 10}, or vocabulary=characters"
        ) from error
    learnt = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    special = (learnt.is_control, learnt.is_unknown, learnt.is_unused)
    places = [i for i in range(len(learnt)) if not any(is_so(i) for is_so in special)]
    return [(learnt.id_to_piece(i), learnt.get_score(i)) for i in places]


def split(text: str, tokens: Sequence[str], scores: Sequence[float]) -> list[str]:
    """The most probable pieces of a text; a symbol that no piece has stands alone."""
    words = [WORD + word for word in text.split()]
    return [piece.value for word in words for piece in _model(tuple(tokens), tuple(scores)).tokenize(word)]


@lru_cache(maxsize=8)
def _model(tokens: tuple[str, ...], scores: tuple[float, ...]) -> Unigram:
    from tokenizers.models import Unigram

    unknown = next((i for i, token in enumerate(tokens) if token in ("<unk>", "[UNK]")), 0)
    return Unigram(list(zip(tokens, scores, strict=True)), unk_id=unknown, byte_fallback=False)
