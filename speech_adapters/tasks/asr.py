"""Speech recognition: characters, subwords or phonemes by CTC, scored by word and character error rate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from speech_adapters.data.manifest import Manifest
from speech_adapters.data.transcripts import write_transcripts
from speech_adapters.encoders.encoder import Encoder
from speech_adapters.encoders.sources import Source, checkpoint_file
from speech_adapters.errors import ConfigError
from speech_adapters.files import write_json
from speech_adapters.heads.base import HeadConfig
from speech_adapters.heads.ctc import CTCHead, CTCHeadModule
from speech_adapters.heads.decoding import BeamSearch
from speech_adapters.metrics.wer import WERResult, pooled_metrics, word_error_rate
from speech_adapters.model import SpeechAdapterModel
from speech_adapters.runs.folder import RunFolder
from speech_adapters.tasks.base import Corpus, Task
from speech_adapters.tasks.predict import Evaluation, check_manifest, predict
from speech_adapters.tasks.start import CHECKPOINT
from speech_adapters.text import (
    Normalizer,
    Vocabulary,
    changes,
    check_letters,
    choose_normalizer,
    describe_changes,
    normalize,
)

LEARNT = ("characters", "subwords", "phonemes")
"""Vocabularies that are made of the training text."""


class SpeechRecognition(Task[WERResult]):
    """A CTC head over characters, subwords or phonemes.

    Args:
        vocabulary: "wav2vec2" (that of wav2vec2-base-960h), "characters", "subwords" or "phonemes" (symbols between
            spaces) of the training text, "checkpoint" (that of the encoder's own CTC head), or your own
            ``vocab.json`` or tokenizer's folder.
        subwords: how many are learnt.
        normalizer: how transcripts are written before they are learnt or scored: a name, or a file of replacements.
        accept_letters: letters that the normaliser may change or drop; "all" for any.
        hidden_size: of a hidden layer in the head; None for none, as published.
        kernel_size: frames that this layer joins.
        dropout: on the head's features while it is trained.
        consistency: weight of the divergence between two passes of the head with dropouts of their own.
        encoder: name of the encoder, for "checkpoint".

    Raises:
        ConfigError: an unknown vocabulary, a checkpoint without one.
        TextError: a file that is no vocabulary or no normaliser.
    """

    name, metric = "asr", "wer"

    def __init__(
        self,
        *,
        vocabulary: str = "wav2vec2",
        subwords: int = 256,
        normalizer: str = "librispeech",
        accept_letters: str = "",
        hidden_size: int | None = None,
        kernel_size: int = 1,
        dropout: float = 0.1,
        consistency: float = 0.0,
        encoder: str | None = None,
    ) -> None:
        self.normalizer, self.accept_letters = choose_normalizer(normalizer), accept_letters
        self.hidden_size, self.kernel_size, self.subwords = hidden_size, kernel_size, subwords
        self.dropout, self.consistency = dropout, consistency
        self.learnt = vocabulary if vocabulary in LEARNT else None
        self.vocabulary = None if self.learnt else _given_vocabulary(vocabulary, encoder)
        self._made: tuple[Manifest, CTCHead] | None = None

    def head(self, corpus: Corpus) -> CTCHead:
        """The head for the training set."""
        return self.head_for(corpus.train)

    def head_for(self, train: Manifest) -> CTCHead:
        """The head to train on a manifest; the last one is remembered, since learning subwords takes its time.

        Raises:
            TextError: texts that no vocabulary can be learnt from, or with letters that the normaliser loses.
        """
        if self._made is None or self._made[0] is not train:
            self._made = train, self._head(train)
        return self._made[1]

    def _head(self, train: Manifest) -> CTCHead:
        texts = [utterance.text or "" for utterance in train]
        check_letters(texts, self.normalizer, self.accept_letters, train.name)
        vocabulary = self.vocabulary or self._learn([normalize(text, self.normalizer) for text in texts])
        return CTCHead(
            vocabulary,
            normalizer=self.normalizer,
            accept_letters=self.accept_letters,
            hidden_size=self.hidden_size,
            kernel_size=self.kernel_size,
            dropout=self.dropout,
            consistency=self.consistency,
        )

    def _learn(self, texts: Sequence[str]) -> Vocabulary:
        if self.learnt == "subwords":
            return Vocabulary.from_subwords(texts, self.subwords)
        return Vocabulary.from_texts(texts) if self.learnt == "characters" else Vocabulary.from_symbols(texts)

    def own_head(self, encoder: Encoder) -> CTCHeadModule:
        """The CTC head of a ``*ForCTC`` checkpoint."""
        return own_ctc_head(encoder, self.normalizer, self.accept_letters)

    def check(self, corpus: Corpus, encoder: Encoder, **hearing: Any) -> None:
        """Besides what the head checks: whether words are told apart, which decides between WER and CER."""
        super().check(corpus, encoder, **hearing)
        self.metric = main_metric(_ctc(self.chosen_head(corpus)).vocabulary)

    def notes(self, corpus: Corpus) -> list[str]:
        """The vocabulary, what the normaliser changes besides case, and how to read the error rates."""
        head = _ctc(self.chosen_head(corpus))
        texts = [str(utterance.text) for manifest in corpus.splits.values() for utterance in manifest]
        said = describe_changes(changes(texts, head.normalizer), head.normalizer)
        return [line for line in (f"vocabulary: {head.vocabulary}", said, head.vocabulary.note) if line]

    def score(self, model: SpeechAdapterModel, corpus: Corpus, **options: Any) -> WERResult:
        """Errors in the best path's texts of the test set."""
        return evaluate_asr(model, corpus.test, **options).result

    def metrics(self, results: Sequence[WERResult]) -> dict[str, Any]:
        """WER and CER over all seeds' errors, with intervals by speaker; mean counts."""
        metrics = pooled_metrics(results)
        return {self.metric: metrics.pop(self.metric), **metrics}

    def write(self, result: WERResult, corpus: Corpus, run: RunFolder, name: str) -> None:
        """``trn`` files, which sclite reads, and the texts of each utterance."""
        result.save_trn(run.trn(name))
        write_transcripts(run.predictions(name), result)

    def show(self, method: str, result: WERResult, corpus: Corpus, run: RunFolder) -> None:
        """The utterances with most errors."""
        write_json(run.worst_file, worst_utterances(result, corpus.test))


def evaluate_asr(
    model: SpeechAdapterModel, manifest: Manifest, *, beam: BeamSearch | None = None, **options: Any
) -> Evaluation[WERResult]:
    """Decode every utterance with the active adapter and CTC head, and score the texts.

    Args:
        manifest: needs ``text``; ``speaker`` makes the intervals bootstrap by speaker.
        beam: a beam search; greedy decoding without one.
        options: of :func:`~speech_adapters.tasks.predict.predict`.

    Raises:
        ConfigError: the active head is not a CTC head.
    """
    head = model.head
    if not isinstance(head, CTCHeadModule):
        raise ConfigError("evaluate_asr: the active head is not a CTC head; load one, or use set_head.")
    check_manifest(manifest)
    manifest.require("text")
    read = None if beam is None else lambda output: beam(output.logits.float(), output.frame_lengths)
    texts = predict(model, manifest, read, **options)
    result = word_error_rate(
        [str(utterance.text) for utterance in manifest],
        texts.values,
        [utterance.speaker for utterance in manifest],
        [utterance.id for utterance in manifest],
        normalizer=head.config.normalizer,
    )
    return Evaluation(result, texts.cost)


def own_ctc_head(encoder: Encoder, normalizer: Normalizer | None = None, accept_letters: str = "") -> CTCHeadModule:
    """The CTC head and vocabulary of a ``*ForCTC`` checkpoint.

    Args:
        normalizer: how transcripts are written for it; by default as its symbols are
            (:attr:`~speech_adapters.text.vocabulary.Vocabulary.normalizer`).

    Raises:
        ConfigError: the checkpoint has no CTC head, or no ``vocab.json``.
    """
    own = encoder.ctc
    if own is None:
        raise ConfigError(f"{encoder.name}: this checkpoint has no CTC head; give a *ForCTC folder, or a saved head.")
    if own.vocabulary is None:
        raise ConfigError(
            f"{encoder.name}: this checkpoint has no vocab.json for its CTC head; save its tokenizer there, or copy "
            "that file from the folder that its training began with."
        )
    vocabulary = Vocabulary.load(own.vocabulary, own.language, len(own.bias))
    if normalizer is None:
        normalizer = vocabulary.normalizer
    head = CTCHeadModule.from_linear(own.weight, own.bias, vocabulary, normalizer=normalizer)
    head.config.accept_letters = accept_letters
    return head


def use_own_ctc_head(
    model: SpeechAdapterModel, normalizer: Normalizer | None = None, name: str = "ctc", accept_letters: str = ""
) -> None:
    """Take the CTC head and vocabulary of a ``*ForCTC`` checkpoint as the model's head.

    Args:
        normalizer: how transcripts are written for it; by default as its symbols are
            (:attr:`~speech_adapters.text.vocabulary.Vocabulary.normalizer`).

    Raises:
        ConfigError: the checkpoint has no CTC head, or no ``vocab.json``.
    """
    own = own_ctc_head(model.encoder, normalizer, accept_letters)
    model.set_active()
    model.add_head(name, replace(own.config, dropout=0.0))
    model.heads[name].load_state_dict(own.state_dict())


def main_metric(vocabulary: Vocabulary) -> str:
    """``"cer"`` where words are not told apart, else ``"wer"``, which counts symbols where these stand apart."""
    return "wer" if vocabulary.has_words or vocabulary.separator else "cer"


def _given_vocabulary(vocabulary: str, encoder: str | None) -> Vocabulary:
    if vocabulary == "wav2vec2":
        return Vocabulary.wav2vec2()
    if vocabulary == CHECKPOINT:
        file = None if encoder is None else checkpoint_file(encoder, "vocab.json")
        if file is None:
            raise ConfigError(f"vocabulary=checkpoint: {encoder or 'no encoder'} has no vocab.json; choose another.")
        return Vocabulary.load(file, language=Source.read(str(encoder)).target_lang)
    if Path(vocabulary).suffix == ".json" or Path(vocabulary).is_dir():
        return Vocabulary.load(vocabulary)
    raise ConfigError(
        f"vocabulary={vocabulary!r}: choose wav2vec2, {', '.join(LEARNT)}, checkpoint, or give a vocab.json."
    )


def _ctc(head: HeadConfig) -> CTCHead:
    if not isinstance(head, CTCHead):
        raise ConfigError(f"from_head: recognition trains a CTC head, and this one is of type {head.head_type!r}.")
    return head


def worst_utterances(result: WERResult, manifest: Manifest, count: int = 15) -> list[dict[str, Any]]:
    """Utterances with most errors, as ``worst.json`` holds them for the report."""
    by_id = {utterance.id: utterance for utterance in manifest}
    return [
        {
            "id": score.id,
            "speaker": score.speaker,
            **by_id[score.id].place(),
            "reference": score.reference,
            "hypothesis": score.hypothesis,
            "alignment": score.alignment(),
            "errors": score.errors,
            "words": score.words,
        }
        for score in result.worst(count)
    ]
