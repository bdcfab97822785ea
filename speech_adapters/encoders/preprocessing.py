"""How a checkpoint's waveforms are prepared: as its files say, else as its family was published, never guessed."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from speech_adapters.encoders.families.base import Family
from speech_adapters.encoders.json_files import is_there, read_json
from speech_adapters.errors import CheckpointError

#: Where it is said, in the order in which transformers asks: version 5 writes the first one and leaves the other.
FILES = ("processor_config.json", "preprocessor_config.json")

#: Keys that must be what the family takes.
FIXED = ("sampling_rate", "feature_size", "num_mel_bins", "stride", "n_fft", "hop_length")


def read_normalize(family: Family, folder: Path, config: Any) -> bool:
    """Whether waveforms are brought to zero mean and unit variance first.

    A file that describes an extractor and leaves it out means the default of transformers, as for the stock model.

    Raises:
        CheckpointError: features of another kind, or nothing said by the files and the family.
    """
    for file in FILES:
        if not is_there(folder / file):
            continue
        values = read_json(folder / file)
        if file == FILES[0]:  # of a processor, a part of which is the extractor
            part = values.get("feature_extractor", values.get("audio_processor"))
            if not isinstance(part, dict):
                continue
            values = part
        expected = family.preprocessor(config, normalize=True)
        for key in FIXED:
            if key in values and key in expected and values[key] != expected[key]:
                raise CheckpointError(
                    f"{folder / file}: {key} is {values[key]!r}; this encoder takes only {expected[key]}; "
                    "correct the file, or give a checkpoint trained with that value."
                )
        if not family.hears_normalized:
            return False
        if "do_normalize" in values:
            value = values["do_normalize"]
            if not isinstance(value, bool):
                raise CheckpointError(f"{folder / file}: do_normalize is {value!r}; it is true or false.")
            return value
        if "feature_extractor_type" in values or "sampling_rate" in values:
            return True  # what transformers' extractor does that is described without a word on it
    published = family.published_normalize(config)
    if published is None:
        raise CheckpointError(
            f"{folder}: no do_normalize in {' or '.join(reversed(FILES))}, which says whether waveforms are brought "
            "to zero mean and unit variance; add the file that the checkpoint was published with, or write "
            '{"do_normalize": true} (or false) into it, as it was pre-trained.'
        )
    if family.hears_normalized and folder.parent.name == "snapshots":  # the cache of a hub that may not be asked now
        warnings.warn(
            f"{folder}: the repository, or what is cached of it, has no {' or '.join(FILES)}: waveforms are "
            f"{'normalised' if published else 'heard as they are'}, as for the family's published checkpoints.",
            stacklevel=3,
        )
    return published
