"""Active learning: label what teaches most. See :class:`ActiveLearner` and, for a whole run, the recipe."""

from speech_adapters.active.loop import ActiveLearner, LabellingConfig

__all__ = ["ActiveLearner", "LabellingConfig"]
