"""Speech recognition: characters by CTC, scored by word and character error rate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from speech_adapters.data.manifest import Manifest
from speech_adapters.data.transcripts import write_transcripts
from speech_adapters.errors import ConfigError
from speech_adapters.files import write_json
from speech_adapters.heads.ctc import CTCHead, CTCHeadModule
from speech_adapters.heads.decoding import BeamSearch
from speech_adapters.metrics.wer import WERResult, pooled_metrics, word_error_rate
from speech_adapters.model import SpeechAdapterModel
from speech_adapters.runs.folder import RunFolder
from speech_adapters.tasks.base import Corpus, Task
from speech_adapters.tasks.predict import Evaluation, predict
from speech_adapters.text import Vocabulary, normalize


class SpeechRecognition(Task[WERResult]):
    """A CTC head over characters.

    Args:
        vocabulary: "wav2vec2" (that of wav2vec2-base-960h), or "characters" (those of the training text).
        normalizer: how transcripts are written before they are learnt or scored.
        hidden_size: of a hidden layer in the head; None for none, as published.
    """

    name, metric = "asr", "wer"

    def __init__(
        self, *, vocabulary: str = "wav2vec2", normalizer: str = "librispeech", hidden_size: int | None = None
    ) -> None:
        if vocabulary not in ("wav2vec2", "characters"):
            raise ConfigError(f"vocabulary={vocabulary!r}: choose wav2vec2 or characters.")
        self.vocabulary, self.normalizer, self.hidden_size = vocabulary, normalizer, hidden_size

    def head(self, corpus: Corpus) -> CTCHead:
        """The head for the training set."""
        return self.head_for(corpus.train)

    def head_for(self, train: Manifest) -> CTCHead:
        """The head to train on a manifest."""
        vocabulary = Vocabulary.wav2vec2()
        if self.vocabulary == "characters":
            vocabulary = Vocabulary.from_texts(normalize(u.text or "", self.normalizer) for u in train)
        return CTCHead(vocabulary, normalizer=self.normalizer, hidden_size=self.hidden_size)

    def score(self, model: SpeechAdapterModel, corpus: Corpus, **options: Any) -> WERResult:
        """Errors in the best path's texts of the test set."""
        return evaluate_asr(model, corpus.test, **options).result

    def metrics(self, results: Sequence[WERResult]) -> dict[str, Any]:
        """WER and CER over all seeds' errors, with intervals by speaker; mean counts."""
        return pooled_metrics(results)

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


def use_own_ctc_head(model: SpeechAdapterModel, normalizer: str = "librispeech", name: str = "ctc") -> None:
    """Take the CTC head and vocabulary of a ``*ForCTC`` checkpoint as the model's head.

    Raises:
        ConfigError: the checkpoint has no CTC head, or no ``vocab.json``.
    """
    own = model.encoder.ctc
    if own is None or own.vocabulary is None:
        lacking = "CTC head" if own is None else "vocab.json"
        raise ConfigError(f"{model.encoder.name}: this checkpoint has no {lacking}; give a *ForCTC folder, or --head.")
    vocabulary = Vocabulary.load(own.vocabulary)
    module = CTCHeadModule.from_linear(own.weight, own.bias, vocabulary, normalizer=normalizer)
    model.set_active()
    model.add_head(name, CTCHead(vocabulary, normalizer=normalizer, dropout=0.0))
    model.heads[name].load_state_dict(module.state_dict())


def worst_utterances(result: WERResult, manifest: Manifest, count: int = 15) -> list[dict[str, Any]]:
    """Utterances with most errors, as ``worst.json`` holds them for the report."""
    by_id = {utterance.id: utterance for utterance in manifest}
    return [
        {
            "id": score.id,
            "speaker": score.speaker,
            "audio_filepath": str(by_id[score.id].audio_filepath),
            "offset": by_id[score.id].offset,
            "duration": by_id[score.id].duration,
            "reference": score.reference,
            "hypothesis": score.hypothesis,
            "alignment": score.alignment(),
            "errors": score.errors,
            "words": score.words,
        }
        for score in result.worst(count)
    ]
