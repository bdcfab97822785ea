"""Where a training starts from: a saved adapter, a saved head, or the head that a checkpoint brings along."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from speech_adapters.adapters.base import AdapterConfig
from speech_adapters.encoders.loading import Encoder
from speech_adapters.errors import ConfigError
from speech_adapters.heads.base import HeadConfig, HeadModule
from speech_adapters.model import SpeechAdapterModel
from speech_adapters.saving.adapters import SavedAdapter, read_adapter
from speech_adapters.saving.heads import method_of, read_head

if TYPE_CHECKING:
    from speech_adapters.tasks.base import ExperimentConfig

CHECKPOINT = "checkpoint"
"""In place of a folder: the head that the encoder's checkpoint brings along."""


@dataclass(frozen=True)
class Start:
    """What a run's adapter and heads start from; None for a fresh one.

    Attributes:
        adapter: of the run's own method; baselines start fresh.
        head: folder of a saved head, of all methods.
        own_head: the checkpoint's, of all methods.
    """

    adapter: SavedAdapter | None = None
    head: Path | None = None
    own_head: HeadModule | None = None

    @classmethod
    def read(cls, config: ExperimentConfig, encoder: Encoder, own_head: Callable[[Encoder], HeadModule]) -> Start:
        """What ``from_adapter`` and ``from_head`` name.

        Raises:
            CheckpointError: a damaged file, or an adapter of another base.
            ConfigError: a checkpoint without a head that the task can train.
        """
        adapter = None if config.from_adapter is None else read_adapter(config.from_adapter, encoder)
        if config.from_head == CHECKPOINT:
            return cls(adapter, None, own_head(encoder))
        return cls(adapter, None if config.from_head is None else Path(config.from_head))

    @property
    def head_config(self) -> HeadConfig | None:
        """The head that all methods train, where the start says it."""
        if self.own_head is not None:
            return self.own_head.config
        return None if self.head is None else read_head(self.head).config

    def adapter_config(self, config: ExperimentConfig, planned: AdapterConfig) -> AdapterConfig:
        """The configuration of the run's own adapter: that of the saved one, which must be of the planned method, and
        takes its learning rate where it has none (a LoRA of ``peft``).

        Raises:
            ConfigError: it is of another, or settings were asked for.
        """
        if self.adapter is None:
            return planned
        saved, asked = method_of(self.adapter.config), method_of(planned)
        if saved != asked:
            raise ConfigError(
                f"from_adapter {config.from_adapter}: holds an adapter of method {saved!r}, and adapter="
                f"{config.adapter} is {asked!r}; name a preset of its own method with --adapter."
            )
        if config.adapter_options:
            raise ConfigError(
                f"adapter_options={config.adapter_options}: an adapter that is trained on keeps the settings it was "
                "saved with; leave them out."
            )
        kept = self.adapter.config
        return kept if kept.learning_rate is not None else replace(kept, learning_rate=planned.learning_rate)

    def baseline(self) -> Start:
        """That of the other methods: the head alone."""
        return Start(None, self.head, self.own_head)

    def load_adapter(self, model: SpeechAdapterModel, name: str) -> None:
        """Give a model's adapter the saved weights."""
        if self.adapter is not None:
            model.registry.adapter(name).load_tensors(self.adapter.tensors)

    def add_head(self, model: SpeechAdapterModel, name: str, config: HeadConfig) -> None:
        """Give a model the saved head or the checkpoint's, or a fresh one of ``config``.

        Raises:
            ConfigError, CheckpointError: it reads other features than the model's adapter gives.
        """
        if self.head is not None:
            with warnings.catch_warnings():  # of features that it has not seen: it is trained on them
                warnings.filterwarnings("ignore", ".*this head was trained on the features")
                model.load_head(self.head, name)
        else:
            model.add_head(name, config)
        head = model.registry.head(name)
        if head.input_size != model.feature_size or (
            self.own_head is not None and head.input_size != self.own_head.input_size
        ):
            reads = head.input_size if self.own_head is None else self.own_head.input_size
            raise ConfigError(
                f"from_head: this head reads features of {reads}, and adapter {model.active!r} gives "
                f"{model.feature_size}; choose an adapter that keeps the width of the encoder's features (lora, "
                "houlsby), also among the baselines (--baselines none leaves them out)."
            )
        if self.own_head is not None:
            head.load_state_dict(self.own_head.state_dict())

    def notes(self, config: ExperimentConfig) -> list[str]:
        """For people, before training."""
        lines = []
        if self.adapter is not None:
            lines.append(f"adapter starts from {config.from_adapter} ({method_of(self.adapter.config)})")
        if config.from_head is not None:
            lines.append(f"head    starts from {config.from_head}, with its vocabulary or classes")
        return lines
