"""Speaker embeddings: one vector per utterance, saved, loaded, and averaged into models."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from speech_adapters.data.arrays import read_arrays
from speech_adapters.errors import ConfigError, InputError
from speech_adapters.files import atomic


@dataclass(frozen=True, eq=False)
class Embeddings:
    """``vectors`` (N, E) in float32 on the CPU, and the ``ids`` of their N utterances.

    Raises:
        InputError: counts that differ, a repeated id, a vector with a NaN or an infinity, or of zeros only.
    """

    ids: tuple[str, ...]
    vectors: Tensor
    name: str = "embeddings"
    """Where they came from; opens error messages."""

    def __post_init__(self) -> None:
        if self.vectors.ndim != 2 or len(self.ids) != len(self.vectors):
            shape = tuple(self.vectors.shape)
            raise InputError(f"{self.name}: {len(self.ids)} ids for vectors {shape}; give (N, E) vectors and N ids.")
        if not len(self.ids):
            raise InputError(f"{self.name}: no embeddings; give at least one.")
        if len(set(self.ids)) < len(self.ids):
            repeated = Counter(self.ids).most_common(1)[0][0]
            raise InputError(f"{self.name}: id {repeated!r} is there twice; keep one of the two.")
        object.__setattr__(self, "vectors", self.vectors.detach().to("cpu", torch.float32).contiguous())
        norms = self.vectors.norm(dim=1)
        bad = ~norms.isfinite() | (norms == 0)
        if bad.any():
            at = int(bad.int().argmax())
            what = "holds a NaN or an infinity" if not norms[at].isfinite() else "is all zeros and has no direction"
            raise InputError(
                f"{self.name}: the embedding of {self.ids[at]!r} {what}; look at its audio and the model."
            )

    def __len__(self) -> int:
        return len(self.ids)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write a ``.npz`` (arrays ``ids`` and ``embeddings``) or ``.safetensors`` file, whole or not at all.

        Raises:
            ConfigError: another suffix. InputError: a folder or disk that cannot be written.
        """
        path = Path(path)
        _check_suffix(path)
        with atomic(path) as file:
            if path.suffix == ".npz":
                np.savez(file, ids=np.array(self.ids), embeddings=self.vectors.numpy())
            else:
                from safetensors.torch import save

                file.write(save({"embeddings": self.vectors}, metadata={"ids": json.dumps(self.ids)}))
        return path

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Embeddings:
        """Read what :meth:`save` wrote, or a file of the same form.

        Raises:
            InputError: a missing or damaged file, or one that lacks ``ids`` or ``embeddings``.
        """
        path = Path(path)
        _check_suffix(path)
        if not path.is_file():
            raise InputError(f"{path}: no such file; give the .npz or .safetensors file of saved embeddings.")
        try:
            if path.suffix == ".npz":
                names, array = read_arrays(path, "ids", "embeddings")
                ids, vectors = names.tolist(), torch.from_numpy(array)
            else:
                from safetensors import SafetensorError, safe_open

                try:
                    with safe_open(path, "pt") as file:
                        ids, vectors = json.loads(file.metadata()["ids"]), file.get_tensor("embeddings")
                except SafetensorError as error:
                    raise ValueError(str(error)) from error
            if not isinstance(ids, list) or vectors.is_complex():
                raise ValueError("ids must be a list, embeddings real numbers")
        except InputError:
            raise
        except (LookupError, TypeError, ValueError, OSError, RuntimeError, MemoryError) as error:
            raise InputError(f"{path}: no saved embeddings with `ids` and `embeddings` ({error}).") from error
        return cls(tuple(map(str, ids)), vectors, str(path))


def average_embeddings(embeddings: Embeddings, groups: Sequence[Sequence[int]], names: Sequence[str]) -> Embeddings:
    """One embedding per group (a model's enrolment utterances, a speaker): the mean of its length-normalised vectors.

    Args:
        groups: which of the N vectors belong to each group. names: of the groups.
    """
    unit = torch.nn.functional.normalize(embeddings.vectors, dim=1)
    sizes = torch.tensor([len(group) for group in groups])
    member = torch.repeat_interleave(torch.arange(len(groups)), sizes)
    numbers = torch.tensor([number for group in groups for number in group])
    sums = torch.zeros(len(groups), unit.shape[1]).index_add_(0, member, unit[numbers])
    return Embeddings(tuple(names), sums / sizes[:, None], embeddings.name)


def _check_suffix(path: Path) -> None:
    if path.suffix not in (".npz", ".safetensors"):
        raise ConfigError(f"{path}: embeddings are kept in .npz or .safetensors files; give one of these suffixes.")
