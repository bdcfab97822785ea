"""Matrices that compressed adapters share: ``basis.json`` and ``basis_model.safetensors``.

An adapter names them by the SHA-256 over these two files. They lie in its own folder, or in a bank beside it, as the
object of that name; they are read once, however many adapters share them.
"""

from __future__ import annotations

from pathlib import Path

from speech_adapters.adapters.base import AdapterConfig
from speech_adapters.adapters.lora_xs import BASES, Basis, LoRAXS
from speech_adapters.errors import CheckpointError
from speech_adapters.files import atomic
from speech_adapters.saving.bank_layout import DIGEST, digest_of_contents
from speech_adapters.saving.parts import load_part, part_files, save_part

KIND = "basis"


def basis_of(config: AdapterConfig) -> str | None:
    """The SHA-256 of the matrices that an adapter shares; None where it has its own."""
    return config.basis if isinstance(config, LoRAXS) else None


def write_basis(folder: Path, basis: Basis, base_fingerprint: str) -> str:
    """Save shared matrices, and know them from now on; returns their SHA-256."""
    tensors = {
        f"{name}.{end}": t for end, pair in (("down", basis.down), ("up", basis.up)) for name, t in pair.items()
    }
    save_part(folder, KIND, {"base": base_fingerprint}, tensors)
    basis.files = part_files(folder, KIND)
    digest = digest_of_contents(basis.files)
    BASES[digest] = basis
    return digest


def read_basis(folder: Path, config: AdapterConfig) -> None:
    """Have the matrices at hand that the adapter in ``folder`` shares, if any.

    Raises:
        CheckpointError: they are missing, damaged, or others than it names.
    """
    digest = basis_of(config)
    if digest is None or digest in BASES:
        return
    if not DIGEST.fullmatch(digest):
        raise CheckpointError(f"{folder}: its basis {digest!r} is not a SHA-256.")
    place = folder if (folder / f"{KIND}.json").is_file() else folder.parent / digest
    if not (place / f"{KIND}.json").is_file():
        raise CheckpointError(
            f"{folder}: the matrices that this adapter shares ({digest[:12]}) lie neither in it nor beside it; take "
            "it from its bank: speech-adapters bank get NAME --output FOLDER."
        )
    files = part_files(place, KIND)
    if digest_of_contents(files) != digest:
        raise CheckpointError(
            f"{place}: these are not the matrices that {folder} shares; take both from its bank again."
        )
    tensors = load_part(place, KIND)[1]
    pairs = {
        end: {name.removesuffix(f".{end}"): t for name, t in tensors.items() if name.endswith(f".{end}")}
        for end in ("down", "up")
    }
    BASES[digest] = Basis(pairs["down"], pairs["up"], files)


def save_basis(folder: str | Path, config: AdapterConfig) -> None:
    """Save the matrices that an adapter shares beside it, if any."""
    digest = basis_of(config)
    for name, content in BASES[digest].files.items() if digest is not None else ():
        with atomic(Path(folder) / name) as file:
            file.write(content)
