"""The CTC head that a recogniser's checkpoint has beside its encoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from speech_adapters.encoders.json_files import is_there
from speech_adapters.encoders.tensors import check_finite
from speech_adapters.encoders.weights import read_tensors
from speech_adapters.errors import CheckpointError

WEIGHT, BIAS = NAMES = ("lm_head.weight", "lm_head.bias")


@dataclass(frozen=True)
class CTCWeights:
    """The CTC head of a ``*ForCTC`` checkpoint.

    Attributes:
        weight, bias: (V, D) and (V,).
        vocabulary: path of its ``vocab.json``, if it has one.
        language: the part of that file that belongs to the head, where it holds a vocabulary per language.
    """

    weight: Tensor
    bias: Tensor
    vocabulary: Path | None
    language: str | None = None


def read_ctc(
    folder: Path, shapes: Mapping[str, tuple[int, ...]], language: str | None, own: Mapping[str, Tensor]
) -> CTCWeights | None:
    """The head in a folder whose tensors have these shapes; None where it has none.

    Args:
        own: the tensors of the language, where it has files of its own, with its head or without.

    Raises:
        CheckpointError: a head that is incomplete or not finite.
    """
    if own and WEIGHT not in own:
        return None  # what lies beside is the head of another language
    shapes = {**shapes, **{name: tuple(tensor.shape) for name, tensor in own.items()}}
    if WEIGHT not in shapes:
        return None
    if BIAS not in shapes or shapes[BIAS] != shapes[WEIGHT][:1] or len(shapes[WEIGHT]) != 2:
        raise CheckpointError(
            f"{folder}: its CTC head needs {WEIGHT} (V, D) and {BIAS} (V,), and has "
            f"{ {name: shapes.get(name) for name in NAMES} }; it is incomplete: download it again."
        )
    found = {name: own[name] for name in NAMES if name in own} or read_tensors(folder, NAMES.__contains__)
    check_finite(found, str(folder))
    vocabulary = folder / "vocab.json"
    return CTCWeights(found[WEIGHT], found[BIAS], vocabulary if is_there(vocabulary) else None, language)
