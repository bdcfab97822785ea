"""Several labels an utterance in one output: the intent head for Fluent Speech Commands.

An intent there is a triple (action, object, location): 6 + 14 + 4 classes are 24 logits, the loss is the sum of a
cross-entropy over each slot's slice, and an utterance counts as right only if all slots are (Lugosch et al., "Speech
model pre-training for end-to-end spoken language understanding", Interspeech 2019; the 24-way form is that of SUPERB's
checkpoints and of Otake et al., ICASSP 2023).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from speech_adapters.data.manifest import Manifest, Utterance
from speech_adapters.encoders.encoder import Encoder
from speech_adapters.errors import ConfigError
from speech_adapters.heads.base import HeadModule, HeadOutput
from speech_adapters.heads.classification import UtteranceHeadConfig, UtteranceNetwork, check_labels, label_index
from speech_adapters.metrics.classification import check_case


@dataclass(kw_only=True)
class SlotsHead(UtteranceHeadConfig):
    """A head of several labels: ``SlotsHead(slots={"action": ("on", "off"), "object": ("lamp", "heat")})``."""

    head_type: ClassVar[str] = "slots"

    slots: dict[str, tuple[str, ...]] = field(default_factory=dict, kw_only=False)
    """Key of the manifest -> its classes, in the order of the logits."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.slots or not isinstance(self.slots, dict):
            raise ConfigError(
                "slots is empty or not a mapping: give each slot's classes, such as {'action': ('on', 'off')}."
            )
        self.slots = {name: check_labels(labels, f"slots[{name!r}]") for name, labels in self.slots.items()}

    @cached_property
    def places(self) -> dict[str, dict[str, int]]:
        """Index of each label in each slot."""
        return {name: {label: i for i, label in enumerate(labels)} for name, labels in self.slots.items()}

    def target(self, utterance: Utterance) -> list[int]:
        """Index of the utterance's label in each slot."""
        return [label_index(utterance, name, places) for name, places in self.places.items()]

    def check(self, manifest: Manifest, encoder: Encoder, *, any_length: bool = False) -> None:
        """Besides audio and labels: no two classes of a slot that differ in case only."""
        for labels in self.slots.values():
            check_case(labels)
        super().check(manifest, encoder, any_length=any_length)

    def build(self, input_size: int) -> SlotsHeadModule:
        return SlotsHeadModule(self, input_size)


class SlotsHeadModule(HeadModule):
    """Features (B, T, D) to logits (B, C), C the classes of all slots, one slot after another."""

    config: SlotsHead

    def __init__(self, config: SlotsHead, input_size: int) -> None:
        super().__init__(config, input_size)
        self.label_sizes = self.sizes = [len(labels) for labels in config.slots.values()]
        self.network = UtteranceNetwork(config, input_size, sum(self.sizes))
        self.reads_means = self.network.reads_means

    def forward(self, features: Tensor, lengths: Tensor) -> HeadOutput:
        return HeadOutput(logits=self.network(features, lengths))

    def loss(self, output: HeadOutput, targets: Tensor) -> Tensor:
        """Sum over slots of the cross-entropies of ``targets`` (B, S), in fp32; the mean over utterances."""
        slices = output.logits.float().split(self.sizes, dim=1)
        losses = [F.cross_entropy(logits, targets[:, slot]) for slot, logits in enumerate(slices)]
        return sum(losses[1:], losses[0])

    def mistakes(self, output: HeadOutput, targets: Tensor) -> tuple[int, int]:
        """Utterances of the batch with a wrong label in any slot, and all."""
        best = torch.stack([logits.argmax(1) for logits in output.logits.split(self.sizes, dim=1)], dim=1)
        return int((best != targets).any(1).sum()), len(targets)

    def predict(self, output: HeadOutput) -> list[tuple[str, ...]]:
        """The best label of each slot, a tuple per utterance."""
        best = [logits.argmax(1).tolist() for logits in output.logits.split(self.sizes, dim=1)]
        slots = list(self.config.slots.values())
        return [tuple(labels[i] for labels, i in zip(slots, row, strict=True)) for row in zip(*best, strict=True)]
