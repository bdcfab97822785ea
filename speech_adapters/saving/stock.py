"""Stock checkpoints: the base with an adapter folded in, bare or under a head, in the files of ``transformers``.

A head goes along where a stock class computes the same:

    CTCHead                 one linear layer (no ``hidden_size``)           *ForCTC                       lm_head
    ClassificationHead      network "linear" under pooling "mean"           *ForSequenceClassification    projector,
                                                                                                          classifier
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from speech_adapters.encoders.loading import Encoder, check_finite, quiet_transformers
from speech_adapters.errors import ConfigError
from speech_adapters.files import new_folder, write_json
from speech_adapters.heads.base import HeadModule
from speech_adapters.heads.classification import ClassificationHeadModule
from speech_adapters.heads.ctc import CTCHeadModule
from speech_adapters.saving.folding import folded_tensors
from speech_adapters.text import Vocabulary


@dataclass(frozen=True)
class StockHead:
    """A head as a stock class has it.

    Attributes:
        kind: the auto class that finds the stock one, of which ``stock_class`` ends in ``ending``.
        settings: what ``config.json`` says of it.
        tensors: its weights by the names of the stock class.
        vocabulary: of the tokenizer, for CTC.
    """

    kind: str
    ending: str
    settings: dict[str, Any]
    tensors: dict[str, Tensor]
    vocabulary: Vocabulary | None = None

    @property
    def modules(self) -> list[str]:
        """Names of the stock class's modules that hold :attr:`tensors`."""
        return sorted({name.partition(".")[0] for name in self.tensors})


def stock_head(head: HeadModule, encoder: Encoder) -> StockHead:
    """What a stock class makes of a head.

    Raises:
        ConfigError: none computes the same; it says why.
    """
    if head.input_size != encoder.hidden_size:
        raise ConfigError(
            f"this head reads features of {head.input_size}, and a stock class gives it the last hidden state of "
            f"{encoder.hidden_size}; save it with save_head, beside its adapter."
        )
    if isinstance(head, CTCHeadModule):
        return _ctc(head)
    if isinstance(head, ClassificationHeadModule):
        return _classification(head)
    raise ConfigError(
        f"no class of transformers computes what a head of type {head.config.head_type!r} does: a stock checkpoint "
        "holds CTC heads and classification heads; save it with save_head."
    )


def _ctc(head: CTCHeadModule) -> StockHead:
    config = head.config
    if config.hidden_size is not None:
        raise ConfigError(
            f"a stock CTC head is one linear layer, and this one has a hidden layer of {config.hidden_size} "
            "(hidden_size); save it with save_head, or train one without."
        )
    vocabulary = config.vocabulary
    settings = {
        "vocab_size": len(vocabulary),
        "pad_token_id": vocabulary.blank_id,  # its name for CTC's blank
        **{f"{name}_token_id": vocabulary.id_of(token) for name, token in (("bos", "<s>"), ("eos", "</s>"))},
        "final_dropout": config.dropout,
        "ctc_loss_reduction": config.reduction,
        "ctc_zero_infinity": True,
    }
    tensors = {f"lm_head.{name}": tensor for name, tensor in head.linear.state_dict().items()}
    return StockHead("AutoModelForCTC", "ForCTC", settings, tensors, vocabulary)


def _classification(head: ClassificationHeadModule) -> StockHead:
    config = head.config
    if (config.network, config.pooling) != ("linear", "mean"):
        raise ConfigError(
            "a stock classification head is network='linear' under pooling='mean', and this one is "
            f"network={config.network!r} under pooling={config.pooling!r}; save it with save_head, or train one of "
            "that kind."
        )
    settings = {
        "id2label": dict(enumerate(config.labels)),
        "label2id": {label: index for index, label in enumerate(config.labels)},
        "classifier_proj_size": config.hidden_size,
        "use_weighted_layer_sum": False,
    }
    parts = {"projector": head.network.frames[1], "classifier": head.network.classifier}
    tensors = {f"{name}.{key}": tensor for name, part in parts.items() for key, tensor in part.state_dict().items()}
    return StockHead("AutoModelForAudioClassification", "ForSequenceClassification", settings, tensors)


def headed_model(encoder: Encoder, head: StockHead) -> nn.Module:
    """An empty stock model of the encoder's family under a head.

    Raises:
        ConfigError: ``transformers`` has no such class for this family.
    """
    import transformers

    config = copy.deepcopy(encoder.config)
    for key, value in head.settings.items():
        setattr(config, key, value)
    try:
        with torch.device("meta"):
            model = getattr(transformers, head.kind).from_config(config)
    except ValueError:
        model = None
    if model is None or not type(model).__name__.endswith(head.ending) or getattr(config, "add_adapter", False):
        reason = "with add_adapter" if getattr(config, "add_adapter", False) else f"as *{head.ending}"
        raise ConfigError(
            f"{encoder.name}: transformers has no class for {encoder.architecture.title} {reason} that computes this "
            "model's logits; save adapter and head with save_adapter and save_head, or the encoder without a head."
        )
    return model


def save_stock(
    encoder: Encoder, weights: Mapping[str, Tensor], folder: str | os.PathLike[str], head: HeadModule | None = None
) -> Path:
    """Save the encoder with ``weights`` in place of those of the same name, whole or not at all; returns the folder.

    Args:
        weights: what an adapter folds to (:func:`~speech_adapters.saving.folding.folded_weights`).
        head: goes along with its tokenizer or classes; None leaves the bare encoder.

    Raises:
        ConfigError: a folder that holds something already, a head that no stock class holds exactly.
        CheckpointError: a weight that is not finite.
        InputError: a folder that cannot be written.
    """
    tensors, preprocessor = folded_tensors(encoder, weights), encoder.preprocessor
    if head is None:
        model: Any = type(encoder.model)(encoder.config)
    else:
        stock = stock_head(head, encoder)
        model = headed_model(encoder, stock).to_empty(device="cpu")
        tensors = {f"{model.base_model_prefix}.{name}": tensor for name, tensor in tensors.items()} | stock.tensors
        if stock.vocabulary is not None:
            preprocessor = {**preprocessor, "processor_class": "Wav2Vec2Processor"}
    check_finite(tensors, f"{folder}: not saved")
    model = model.to(encoder.model.dtype)
    model.load_state_dict(tensors)
    with new_folder(folder) as temporary:
        with quiet_transformers():
            model.save_pretrained(temporary)
        write_json(temporary / "preprocessor_config.json", preprocessor)
        if head is not None and stock.vocabulary is not None:
            stock.vocabulary.save(temporary)
    return Path(folder)
