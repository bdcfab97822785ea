"""What every evaluation recipe is asked: which saved model, how it hears, and where the figures go."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from speech_adapters.config import option
from speech_adapters.data.manifest import Channel
from speech_adapters.data.windows import Windows
from speech_adapters.ranges import Positive

if TYPE_CHECKING:
    from speech_adapters.model import SpeechAdapterModel


@dataclass(kw_only=True)
class EvaluationSettings:
    """A part of a recipe's configuration."""

    adapter: Path | None = option(None, "folder of a saved adapter, or of a run that holds one")
    head: Path | None = option(None, "folder of a saved head; the one trained on the adapter by default")
    encoder: str | None = option(None, "packaged name, local folder or hub id; the adapter's base by default")
    channel: Channel | None = option(
        None, "heard of files with several, where a line does not say it: a number, or mix"
    )
    windows: Windows | None = option(
        None, "hear recordings in pieces, as transcribe does: windows.seconds=20; none: each in one forward"
    )
    batch_seconds: Positive = option(120.0, "audio per batch, padding included")
    precision: Literal["fp32", "bf16"] = option("fp32", "bf16: autocast")
    device: str = option("auto", "auto, cpu, cuda, cuda:1, ...")
    output: Path | None = option(None, "run folder; a new one in runs/ by default")

    @property
    def hearing(self) -> dict[str, Any]:
        """Options of :func:`~speech_adapters.tasks.predict.predict`."""
        return {"batch_seconds": self.batch_seconds, "precision": self.precision, "windows": self.windows}

    def load(self) -> SpeechAdapterModel:
        """The saved model. Raises what :func:`~speech_adapters.tasks.saved_model.load_saved` does."""
        from speech_adapters.tasks.saved_model import load_saved

        return load_saved(self.adapter, self.head, self.encoder, self.device)
