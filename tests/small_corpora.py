"""What the tests of corpora build their miniatures from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile


def speak(path: Path, seconds: float = 0.1, rate: int = 16_000, channels: int = 1) -> None:
    """Write noise, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(len(path.stem)).uniform(-0.1, 0.1, (int(seconds * rate), channels))
    soundfile.write(path, noise, rate)
