"""The small encoders that ship with the package."""

from __future__ import annotations

from pathlib import Path

PACKAGED = Path(__file__).parent / "packaged"


def packaged_encoders() -> list[str]:
    """Their names."""
    return sorted(path.parent.name for path in PACKAGED.glob("*/config.json"))
