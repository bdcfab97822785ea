"""``SpeechAdapterModel``: all of it, as it is loaded and shown."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from torch import nn

from speech_adapters.composition.blocks import Composition
from speech_adapters.data.audio import SAMPLE_RATE
from speech_adapters.data.windows import Windows
from speech_adapters.deprecation import renamed, renamed_attribute
from speech_adapters.encoders.loading import load_encoder
from speech_adapters.errors import ConfigError
from speech_adapters.inference.methods import Inference
from speech_adapters.inference.recordings import Audio, recordings_of
from speech_adapters.model.files import Files
from speech_adapters.model.forward import Forward
from speech_adapters.model.training import Training
from speech_adapters.saving.finding import find_parts
from speech_adapters.unlabelled.adaptation import Adaptation, Method, adapted


class SpeechAdapterModel(Inference, Files, Training, Forward):
    """A frozen encoder, adapters and heads by name. At any time one adapter or composition and one head are active.

    >>> model = SpeechAdapterModel.from_pretrained("tiny-wavlm")
    >>> model.add_adapter("telephone", "elp")
    >>> model.add_head("asr", CTCHead(vocabulary))
    >>> model.train_adapter("telephone", head="asr")
    >>> model(waveforms, lengths=lengths).logits

    What was trained is used by ``SpeechAdapterModel.from_adapter(folder)`` and the methods of
    :class:`~speech_adapters.inference.methods.Inference`.
    """

    accepts_loss_kwargs = False
    """Tells ``transformers.Trainer`` that the loss is a mean over utterances, not over tokens of several batches."""

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, **options: Any) -> SpeechAdapterModel:
        """Load and freeze an encoder; arguments and errors of :func:`~speech_adapters.encoders.load_encoder`."""
        return cls(load_encoder(name_or_path, **options))

    @classmethod
    def from_adapter(
        cls,
        folder: str | Path,
        *,
        head: str | Path | None = None,
        encoder: str | Path | None = None,
        **options: Any,
    ) -> SpeechAdapterModel:
        """All that belongs to a saved adapter, ready for use: the base that it names, itself, and the head that was
        trained on it.

        Args:
            folder: of an adapter, of a head, of both, or of a run that holds one of each. The head is the one in the
                same folder, or in ``heads/`` beside ``adapters/``, whose file says that it was trained on this adapter
                as it is; of several, the one of the adapter's name. Without any, none is active.
            head: the folder of the head to take instead.
            encoder: the base, where its name in the file is not to be found here: a packaged name, folder or hub id.
            options: of :meth:`from_pretrained`: ``device``, ``dtype``, ``quantize``.

        Raises:
            CheckpointError: no such parts, damaged ones, or several that fit, which are named.
            ConfigError: the base cannot be loaded.
        """
        parts = find_parts(folder, head)
        if encoder is None:
            options.setdefault("revision", parts.base.revision_here)
        options.setdefault("target_lang", parts.base.language)
        try:
            model = cls.from_pretrained(parts.base.name if encoder is None else encoder, **options)
        except ConfigError as error:
            if encoder is not None:
                raise
            raise ConfigError(
                f"{folder}: its base is {parts.base.name!r}: {error} (Or name it: encoder=, --encoder.)"
            ) from error
        if parts.adapter is not None:
            model.load_adapter(parts.adapter)
        if parts.head is not None:
            model.load_head(parts.head)
        return model.eval()

    def adapted(
        self,
        audio: Audio | Sequence[Audio],
        method: Method,
        *,
        windows: Windows | None = None,
        channel: int | str | None = None,
        sample_rate: int = SAMPLE_RATE,
    ) -> AbstractContextManager[Adaptation]:
        """This model adapted to recordings without their texts, for a while; afterwards every weight is what it was.

        >>> with model.adapted("call.wav", Entropy()):
        ...     transcript = model.transcribe("call.wav")

        Args:
            audio: a path, samples, or a list of them, to which it is adapted together.
            method: of :mod:`speech_adapters.unlabelled`.
            windows, channel, sample_rate: as for :meth:`transcribe`.

        Raises:
            ConfigError, AudioError, CheckpointError: see :func:`~speech_adapters.unlabelled.adaptation.adapted`.
        """
        files = recordings_of(audio, channel=channel, sample_rate=sample_rate)
        return adapted(self, [file[0] for file in files], method, windows)

    def count_parameters(self) -> dict[str, float]:
        """``trainable`` (active adapters and head), ``total`` (of all that a forward uses) and ``percent``."""
        trainable = sum(p.numel() for group in self.parameter_groups().values() for p in group)
        adapters = [self.registry.adapter(name) for name in self.active_adapters]
        added = sum(_size(adapter) - adapter.replaced() for adapter in adapters)
        added += sum(_size(module) for module in self.registry.fusions_in(self.active))
        total = self.encoder.num_parameters + added + (0 if self.head is None else _size(self.head))
        return {"trainable": trainable, "total": total, "percent": 100 * trainable / total}

    def __repr__(self) -> str:
        registry, lines = self.registry, [f"SpeechAdapterModel on {self.encoder!r}"]
        for name in self.adapters:
            adapter, mark = registry.adapter(name), "*" if name in self.active_adapters else " "
            lines.append(f" {mark} adapter {name!r}: {_size(adapter):,} parameters")
            lines += [f"     {line}" for line in adapter.describe()]
        for name in self.fusions:
            fusion = registry.fusion(name)
            mark = "*" if fusion.composition in self.active_fusions else " "
            lines.append(f" {mark} {fusion.composition!r}: {_size(fusion):,} parameters")
            lines += [f"     {line}" for line in fusion.describe()]
        for name in self.heads:
            head, mark = registry.head(name), "*" if name == self.active_head else " "
            lines.append(f" {mark} head {name!r}: {_size(head):,} parameters, reads {head.input_size}")
        if isinstance(self.active, Composition):
            lines.append(f"   active: {self.active!r}")
        active = self.count_parameters()
        lines.append("   active: {trainable:,} trainable of {total:,} ({percent:.2f} %)".format(**active))
        return "\n".join(lines)

    # ------------------------------------------------------------------ old names

    merge_adapter = renamed("merge_adapter", "fold_adapter")
    unmerge_adapter = renamed("unmerge_adapter", "unfold_adapter")
    merged_adapter = renamed_attribute("merged_adapter", "folded_adapter")
    save_merged = renamed("save_merged", "save_folded")
    merge_adapters = renamed("merge_adapters", "average_adapters")
    merge_heads = renamed("merge_heads", "average_heads")
    places = renamed("places", "hooks")


def _size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
