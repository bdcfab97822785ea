"""What a model says about a pool of utterances: guesses, uncertainties, embeddings, gradients, repeated decodes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from speech_adapters.active.acquisition import UNCERTAINTIES, ctc_uncertainty
from speech_adapters.active.disagreement import bald, decode_disagreement, monte_carlo_dropout
from speech_adapters.active.diversity import ctc_gradient_embeddings, gradient_embeddings
from speech_adapters.data.batches import SpeechDataset, evaluation_loader, model_inputs
from speech_adapters.data.manifest import Manifest
from speech_adapters.errors import ConfigError
from speech_adapters.heads.classification import ClassificationHeadModule
from speech_adapters.heads.ctc import CTCHeadModule
from speech_adapters.heads.decoding import greedy_decode
from speech_adapters.heads.pooling import MeanPooling
from speech_adapters.model import SpeechAdapterModel
from speech_adapters.training.cache import CachedDataset


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


@torch.no_grad()
def observe(
    model: SpeechAdapterModel,
    manifest: Manifest,
    *,
    batch_seconds: float = 120.0,
    gradients: bool = False,
    cached: CachedDataset | None = None,
) -> Observation:
    """One pass over the manifest with the active adapters and head; without a head, embeddings alone.

    ``cached`` holds activations of these utterances, among others, to start from.

    Raises:
        ConfigError: a head that is neither CTC nor classification.
    """
    head = _head(model)
    if not len(manifest):
        return Observation(np.zeros((0, model.feature_size), dtype=np.float32), ("",) * 0, {})
    pool = MeanPooling(model.feature_size)
    rows: dict[str, list] = {"embeddings": [], "probabilities": [], "gradients": [], "guesses": []}
    rows |= {name: [] for name in UNCERTAINTIES}
    order: list[int] = []
    last = None if head is None else [m for m in head.modules() if isinstance(m, nn.Linear)][-1]
    seen: list[Tensor] = []
    hook = None if last is None else last.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        model.eval()
        for batch, output in _forward(model, manifest, batch_seconds, cached):
            order += batch["indices"].tolist()
            pooled = pool(output.features, output.frame_lengths)
            rows["embeddings"].append(nn.functional.normalize(pooled.float(), dim=1).cpu())
            if head is None:
                continue
            logits, lengths = output.logits.float(), output.frame_lengths
            probabilities, layer_input = logits.softmax(-1), seen.pop().float()
            if isinstance(head, CTCHeadModule):
                blank = head.config.vocabulary.blank_id
                rows["guesses"] += greedy_decode(logits, lengths, head.config.vocabulary)
                for name in UNCERTAINTIES:
                    rows[name].append(ctc_uncertainty(name, probabilities, lengths, blank).cpu())
                if gradients:
                    found = ctc_gradient_embeddings(logits, lengths, layer_input, blank)
                    rows["gradients"].append(found.cpu())
            else:
                rows["guesses"] += [head.config.labels[i] for i in logits.argmax(-1).tolist()]
                rows["probabilities"].append(probabilities.cpu())
                for name, function in UNCERTAINTIES.items():
                    rows[name].append(function(probabilities).cpu())
                if gradients:
                    rows["gradients"].append(gradient_embeddings(probabilities, layer_input).cpu())
    finally:
        if hook is not None:
            hook.remove()
    back = np.argsort(order)

    def joined(name: str) -> Tensor | None:
        return torch.cat(rows[name])[torch.from_numpy(back)] if rows[name] else None

    arrays = {name: joined(name) for name in rows if name != "guesses"}
    return Observation(
        arrays["embeddings"].numpy(),
        tuple(rows["guesses"][i] for i in back) if rows["guesses"] else (),
        {name: arrays[name].numpy() for name in UNCERTAINTIES if arrays[name] is not None},
        arrays["probabilities"],
        None if arrays["gradients"] is None else arrays["gradients"].numpy(),
    )


@torch.no_grad()
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
        torch.manual_seed(seed * 1000 + number)
        model.eval()
        with monte_carlo_dropout(model, dropout):
            predictions.append(_predict(model, manifest, batch_seconds))
    return _disagreement(model, predictions)


@torch.no_grad()
def committee_disagreement(
    models: list[SpeechAdapterModel], manifest: Manifest, *, batch_seconds: float = 120.0
) -> np.ndarray:
    """(N,) disagreement of models trained on the same labels, such as adapters of two ranks."""
    for model in models:
        model.eval()
    return _disagreement(models[0], [_predict(model, manifest, batch_seconds) for model in models])


def _disagreement(model: SpeechAdapterModel, predictions: list) -> np.ndarray:
    if isinstance(_head(model), CTCHeadModule):
        return decode_disagreement(predictions)
    return bald(torch.stack(predictions)).numpy()


def _predict(model: SpeechAdapterModel, manifest: Manifest, batch_seconds: float) -> list[str] | Tensor:
    """Texts, or probabilities (N, C), in the manifest's order."""
    head, found, order = _head(model), [], []
    for batch, output in _forward(model, manifest, batch_seconds):
        order += batch["indices"].tolist()
        if isinstance(head, CTCHeadModule):
            found += greedy_decode(output.logits, output.frame_lengths, head.config.vocabulary)
        else:
            found += list(output.logits.float().softmax(-1).cpu())
    arranged = [found[i] for i in np.argsort(order)]
    return arranged if isinstance(head, CTCHeadModule) else torch.stack(arranged)


def _forward(
    model: SpeechAdapterModel, manifest: Manifest, batch_seconds: float, cached: CachedDataset | None = None
) -> Iterator[tuple]:
    device = next(model.encoder.model.parameters()).device
    dataset = SpeechDataset(manifest, keep_in_memory=False)
    for batch in evaluation_loader(dataset if cached is None else cached.part(dataset), batch_seconds):
        yield batch, model(**model_inputs(batch, device))


def _head(model: SpeechAdapterModel):
    head = model.head
    if head is not None and not isinstance(head, CTCHeadModule | ClassificationHeadModule):
        raise ConfigError("active learning needs a CTC or classification head; choose one with set_head.")
    return head
