"""Slots: several labels per utterance (an intent's action, object and location), right only if all of them are."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import add
from typing import Any, Literal

from speech_adapters.data.manifest import Manifest
from speech_adapters.errors import ConfigError
from speech_adapters.heads.slots import SlotsHead, SlotsHeadModule
from speech_adapters.metrics.slots import SlotsResult, SlotsUtterance
from speech_adapters.model import SpeechAdapterModel
from speech_adapters.tasks.base import Corpus, Task
from speech_adapters.tasks.predict import Evaluation, check_manifest, predict


class SlotFilling(Task[SlotsResult]):
    """A class for each of several keys of the manifest.

    Args:
        slots: the keys. name: of the task. network, pooling: of the head.
    """

    metric = "accuracy"

    def __init__(
        self,
        slots: Sequence[str],
        name: str = "intent",
        *,
        network: Literal["linear", "conv"] = "linear",
        pooling: str = "mean",
    ) -> None:
        if twice := [slot for slot in slots if list(slots).count(slot) > 1]:
            raise ConfigError(f"slots: {twice[0]!r} is given twice; give each key once.")
        self.name, self.slots, self.network, self.pooling = name, tuple(slots), network, pooling

    def head(self, corpus: Corpus) -> SlotsHead:
        """The head for the classes of the training set."""
        slots = {slot: corpus.train.values(slot) for slot in self.slots}
        return SlotsHead(slots=slots, network=self.network, pooling=self.pooling)

    def score(self, model: SpeechAdapterModel, corpus: Corpus, **options: Any) -> SlotsResult:
        """All slots of the test set."""
        return evaluate_slots(model, corpus.test, **options).result

    def metrics(self, results: Sequence[SlotsResult]) -> dict[str, Any]:
        """Accuracy of whole utterances and of each slot, the mean over seeds."""
        return reduce(add, results).to_dict()


def evaluate_slots(model: SpeechAdapterModel, manifest: Manifest, **options: Any) -> Evaluation[SlotsResult]:
    """Predict every utterance's slots with the active adapter and slots head, and score them.

    Args:
        manifest: needs a key for each slot; ``speaker`` makes the intervals bootstrap by speaker.
        options: of :func:`~speech_adapters.tasks.predict.predict`.

    Raises:
        ConfigError: the active head is not a slots head.
        ManifestError: an utterance lacks a slot.
    """
    head = model.head
    if not isinstance(head, SlotsHeadModule):
        raise ConfigError("evaluate_slots: the active head is not a slots head; load one, or use set_head.")
    slots = tuple(head.config.slots)
    check_manifest(manifest)
    manifest.require(*slots)
    found = predict(model, manifest, **options)
    utterances = (
        SlotsUtterance(u.id, u.speaker, tuple(u.get(slot) for slot in slots), prediction)
        for u, prediction in zip(manifest, found.values, strict=True)
    )
    return Evaluation(SlotsResult(slots, tuple(utterances)), found.cost)
