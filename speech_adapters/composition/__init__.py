"""Adapters together: stacked, averaged, fused, routed, side by side, and one per sample of a batch."""

from speech_adapters.composition.blocks import Average, Composition, Fuse, Parallel, Route, Stack
from speech_adapters.composition.fusion import FusionConfig
from speech_adapters.composition.routing import RouterConfig

__all__ = ["Average", "Composition", "Fuse", "FusionConfig", "Parallel", "Route", "RouterConfig", "Stack"]
