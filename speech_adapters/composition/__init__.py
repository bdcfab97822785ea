"""Adapters together: stacked, averaged, fused, routed, side by side, merged, and one a sample in a batch."""

from speech_adapters.composition.fusion import FusionConfig
from speech_adapters.composition.routing import RouterConfig
from speech_adapters.composition.values import Average, Composition, Fuse, Parallel, Route, Stack

__all__ = ["Average", "Composition", "Fuse", "FusionConfig", "Parallel", "Route", "RouterConfig", "Stack"]
