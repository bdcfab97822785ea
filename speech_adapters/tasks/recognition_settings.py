"""What every recipe of speech recognition is asked: how texts are written, and the CTC head over their symbols."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from speech_adapters.config import option
from speech_adapters.ranges import Dropout, NotNegative, Size

if TYPE_CHECKING:
    from speech_adapters.tasks.asr import SpeechRecognition


@dataclass(kw_only=True)
class RecognitionSettings:
    """A part of a recipe's configuration."""

    vocabulary: str = option(
        "wav2vec2",
        "wav2vec2: that of wav2vec2-base-960h; characters, subwords or phonemes (symbols between spaces) of the "
        "training text; checkpoint: that of the encoder's own CTC head; or a vocab.json",
    )
    subwords: Size = option(256, "how many, with --vocabulary subwords")
    normalizer: str = option(
        "librispeech",
        "librispeech, basic or basic-upper (any language), whisper-english, none, or a file of replacements; saved "
        "with the head",
    )
    accept_letters: str = option("", "letters that the normaliser may change or drop, such as éï; all for any")
    head_hidden_size: Size | None = option(None, "a hidden layer in the CTC head; none by default, as published")
    head_kernel_size: Size = option(1, "neighbouring frames that this layer joins, an odd number")
    head_dropout: Dropout = option(0.1, "share of the features that the head does not see while it is trained")
    head_consistency: NotNegative = option(
        0.0, "weight of the divergence between two passes of the head, each with a dropout of its own (0.2 in CR-CTC)"
    )

    def recognition(self, encoder: str | None) -> SpeechRecognition:
        """The task, on the encoder of this name, which ``vocabulary=checkpoint`` is read from.

        Raises:
            ConfigError: an unknown vocabulary, a checkpoint without one.
            TextError: a file that is no vocabulary or no normaliser.
        """
        from speech_adapters.tasks.asr import SpeechRecognition

        return SpeechRecognition(
            vocabulary=self.vocabulary,
            subwords=self.subwords,
            normalizer=self.normalizer,
            accept_letters=self.accept_letters,
            hidden_size=self.head_hidden_size,
            kernel_size=self.head_kernel_size,
            dropout=self.head_dropout,
            consistency=self.head_consistency,
            encoder=encoder,
        )
