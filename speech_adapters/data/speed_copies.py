"""Copies of utterances that are played faster or slower, as files.

Ko et al., "Audio augmentation for speech recognition" (Interspeech 2015), train on three copies of all speech, at
speeds 0.9, 1 and 1.1. ``training.augmentation`` draws one of them anew in each epoch; ``training.cache`` keeps what
the frozen encoder made of an utterance, and wants them side by side.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tqdm.auto import tqdm

from speech_adapters.data.audio import SAMPLE_RATE, write_audio
from speech_adapters.data.augmentation import speed
from speech_adapters.data.manifest import Manifest
from speech_adapters.errors import ConfigError, ManifestError
from speech_adapters.files import new_folder


def with_speeds(manifest: Manifest, speeds: Sequence[float], folder: str | os.PathLike[str]) -> Manifest:
    """The manifest, and behind each utterance its copies, called ``ID-x0.9``, with the same speaker and text.

    Args:
        speeds: of the copies, such as (0.9, 1.1); the utterances themselves stay as they are.
        folder: for the copies' files, which must be new: FLAC of 16 kHz and 16 bit. What resampling makes louder than
            full scale is made softer as a whole.

    Raises:
        ConfigError: a speed of 1, one that is there twice or not between 0.1 and 10, a folder that is there.
        AudioError: a recording that cannot be read.
        ManifestError: a copy that would have the name of another utterance.
    """
    if not speeds or 1 in speeds or len(set(speeds)) < len(speeds):
        raise ConfigError(f"speeds={tuple(speeds)}: give one or more, each once, such as 0.9,1.1; 1 is there already.")
    root, utterances, ids = Path(folder).absolute(), [], {utterance.id for utterance in manifest}
    with new_folder(root) as temporary:
        for utterance in tqdm(manifest, desc="copies at other speeds", leave=False, disable=None):
            utterances.append(utterance)
            waveform = utterance.waveform()
            for factor in speeds:
                fast, name = speed(waveform, factor), f"{utterance.id}-x{factor:g}"
                file = f"{name.replace('/', '-')}.flac"
                if name in ids or (temporary / file).exists():
                    raise ManifestError(
                        f"{manifest.name}: utterance {utterance.id!r}: its copy would have the name of another, "
                        f"{name!r}; rename one of them"
                    )
                write_audio(temporary / file, fast, loud="scale")
                utterances.append(
                    replace(
                        utterance, id=name, audio_filepath=root / file, offset=0.0, duration=len(fast) / SAMPLE_RATE,
                        channel=None,
                    )
                )  # fmt: skip
    return Manifest(utterances, manifest.name)
