"""What a model says about a pool of utterances: guesses, uncertainties, embeddings, gradients, repeated decodes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from speech_adapters.active.acquisition import UNCERTAINTIES, ctc_uncertainty
from speech_adapters.active.disagreement import bald, decode_disagreement, monte_carlo_dropout
from speech_adapters.active.diversity import ctc_gradient_embeddings, gradient_embeddings
from speech_adapters.data.manifest import Manifest
from speech_adapters.data.windows import Windows
from speech_adapters.errors import ConfigError
from speech_adapters.heads.classification import ClassificationHeadModule
from speech_adapters.heads.ctc import CTCHeadModule
from speech_adapters.inference.outputs import head_output, mean_pooled
from speech_adapters.model import SpeechAdapterModel
from speech_adapters.model_output import ModelOutput
from speech_adapters.tasks.predict import predict
from speech_adapters.training.cached_dataset import CachedDataset


@dataclass(frozen=True)
class Observation:
    """Of N utterances, in the manifest's order.

    Attributes:
        embeddings: (N, D) features of the model, averaged over real frames, of unit length.
        guesses: texts or labels; empty without a head.
        uncertainty: by name, (N,); see :mod:`~speech_adapters.active.acquisition`.
        probabilities: (N, C) of a classification head, else None.
        gradients: (N, C D) for BADGE where they were asked for, else None.
    """

    embeddings: np.ndarray
    guesses: tuple[str, ...] = ()
    uncertainty: dict[str, np.ndarray] | None = None
    probabilities: Tensor | None = None
    gradients: np.ndarray | None = None


def observe(
    model: SpeechAdapterModel,
    manifest: Manifest,
    *,
    batch_seconds: float = 120.0,
    gradients: bool = False,
    cached: CachedDataset | None = None,
    windows: Windows | None = None,
) -> Observation:
    """One pass over the manifest with the active adapters and head; without a head, embeddings alone.

    ``cached`` holds activations of these utterances, among others, to start from. ``windows`` hear long recordings in
    pieces, as in :func:`~speech_adapters.tasks.predict.predict`.

    Raises:
        ConfigError: a head that is neither CTC nor classification, or gradients by windows.
    """
    head = _head(model)
    if windows is not None and gradients:
        raise ConfigError("gradients need each utterance in one forward; leave out the windows, or choose a strategy "
                          "without gradients.")  # fmt: skip
    if not len(manifest):
        return Observation(np.zeros((0, model.feature_size), dtype=np.float32), (), {})
    seen: list[Tensor] = []  # the last layer's input, for the gradients
    hook = None
    if head is not None and gradients:
        last = [module for module in head.modules() if isinstance(module, nn.Linear)][-1]
        hook = last.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))

    def read(output: ModelOutput) -> list[dict[str, Any]]:
        return _observations(head, output, seen.pop().float() if seen else None)

    try:
        found = predict(
            model, manifest, read, batch_seconds=batch_seconds, cache=cached, windows=windows, progress=False
        )
    finally:
        if hook is not None:
            hook.remove()

    rows = found.values

    def joined(name: str) -> Tensor | None:
        return torch.stack([row[name] for row in rows]) if name in rows[0] else None

    gradient = joined("gradients")
    return Observation(
        torch.stack([row["embedding"] for row in rows]).numpy(),
        tuple(row["guess"] for row in rows) if head is not None else (),
        {name: torch.stack([row[name] for row in rows]).numpy() for name in UNCERTAINTIES if name in rows[0]},
        joined("probabilities"),
        None if gradient is None else gradient.numpy(),
    )


def _observations(
    head: CTCHeadModule | ClassificationHeadModule | None,
    output: ModelOutput,
    layer_input: Tensor | None,
) -> list[dict[str, Any]]:
    """What each utterance of a batch shows, by name."""
    found: dict[str, Any] = {"embedding": nn.functional.normalize(torch.stack(mean_pooled(output)), dim=1)}
    if head is not None:
        scored = head_output(output)
        probabilities = scored.logits.softmax(-1)
        if isinstance(head, CTCHeadModule):
            lengths, blank = output.frame_lengths, head.config.vocabulary.blank_id
            found["guess"] = head.predict(scored)
            found |= {name: ctc_uncertainty(name, probabilities, lengths, blank).cpu() for name in UNCERTAINTIES}
            if layer_input is not None:
                found["gradients"] = ctc_gradient_embeddings(scored.logits, lengths, layer_input, blank).cpu()
        else:
            found["guess"] = [head.config.labels[i] for i in probabilities.argmax(-1).tolist()]
            found["probabilities"] = probabilities.cpu()
            found |= {name: function(probabilities).cpu() for name, function in UNCERTAINTIES.items()}
            if layer_input is not None:
                found["gradients"] = gradient_embeddings(probabilities, layer_input).cpu()
    return [dict(zip(found, values, strict=True)) for values in zip(*found.values(), strict=True)]


def dropout_disagreement(
    model: SpeechAdapterModel,
    manifest: Manifest,
    *,
    passes: int = 5,
    dropout: float = 0.1,
    seed: int = 0,
    batch_seconds: float = 120.0,
) -> np.ndarray:
    """(N,) disagreement of ``passes`` with dropout in every layer: BALD, or the error rate between decodes."""
    if passes < 2:
        raise ConfigError(f"passes={passes}: two passes or more can disagree.")
    predictions = []
    for number in range(passes):
        model.eval()
        with torch.random.fork_rng(), monte_carlo_dropout(model, dropout):
            torch.manual_seed(seed * 1000 + number)
            found = predict(model, manifest, batch_seconds=batch_seconds, progress=False, train_mode=True)
            predictions.append(found.values)
    return _disagreement(model, predictions)


def committee_disagreement(
    models: list[SpeechAdapterModel], manifest: Manifest, *, batch_seconds: float = 120.0
) -> np.ndarray:
    """(N,) disagreement of models trained on the same labels, such as adapters of two ranks."""
    found = [predict(model, manifest, batch_seconds=batch_seconds, progress=False).values for model in models]
    return _disagreement(models[0], found)


def _disagreement(model: SpeechAdapterModel, predictions: list[list[Any]]) -> np.ndarray:
    if isinstance(_head(model), CTCHeadModule):
        return decode_disagreement(predictions)
    return bald(torch.stack([torch.stack(rows) for rows in predictions])).numpy()


def _head(model: SpeechAdapterModel) -> CTCHeadModule | ClassificationHeadModule | None:
    head = model.head
    if head is not None and not isinstance(head, CTCHeadModule | ClassificationHeadModule):
        raise ConfigError("active learning needs a CTC or classification head; choose one with set_head.")
    return head
