"""LoRA adapters of a bank, compressed together: their updates in shared bases (:mod:`speech_adapters.bank.joint_svd`).

Each becomes the next version of its name, an adapter of method ``lora-xs``: its cores are its own, the matrices around
them an object of the bank that all of a cluster name. Nothing is expanded when it is loaded: a mixed batch multiplies
by the shared matrices once and by each adapter's cores. Its head goes along, marked as one of the compressed adapter.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from speech_adapters.adapters.lora import LoRA
from speech_adapters.adapters.lora_xs import Basis, LoRAXS
from speech_adapters.bank.bank import Bank
from speech_adapters.bank.index import Found
from speech_adapters.bank.joint_svd import Update, compress_jointly
from speech_adapters.encoders.encoder import Encoder
from speech_adapters.encoders.tensors import fingerprint
from speech_adapters.errors import ConfigError
from speech_adapters.model import SpeechAdapterModel
from speech_adapters.saving.adapters import SavedAdapter, read_adapter
from speech_adapters.saving.basis import write_basis
from speech_adapters.saving.heads import AdapterIdentity, read_head
from speech_adapters.saving.parts import save_part

COMPRESSED = "compressed"
"""The tag of what was made."""


@dataclass(frozen=True)
class Compressed:
    """One adapter: what it was made of, what it is now, and what it lost.

    Attributes:
        error: ``|M - U C V| / |M|`` over its projections, as stored.
    """

    before: Found
    after: Found
    error: float


@dataclass(frozen=True)
class Compression:
    """What was done.

    Attributes:
        ranks: of the shared bases, one per cluster.
        bytes_before, bytes_after: of the adapters' weights files; the shared bases are in the latter.
    """

    adapters: list[Compressed]
    ranks: list[int]
    bytes_before: int
    bytes_after: int


def compress(
    bank: Bank,
    chosen: Sequence[Found],
    encoder: Encoder,
    target_error: float,
    dtype: torch.dtype = torch.float16,
    seed: int = 0,
) -> Compression:
    """Compress LoRA adapters of one base together, and keep each as the next version of its name.

    Args:
        chosen: versions of plain or rank-stabilised LoRA on the same projections; ranks may differ.
        target_error: the most that any of them may lose, as a share of its norm; ``dtype`` sets its lower end, 0.001
            for float16.
        dtype: of the stored bases; cores, which a head knows its adapter by, stay in float32.

    Raises:
        ConfigError: fewer than two adapters, other methods or projections among them, or nothing to gain.
        CheckpointError: a damaged adapter, or one of another base.
    """
    rounding = torch.finfo(dtype).eps
    if not rounding < target_error < 1:
        raise ConfigError(
            f"target_error={target_error}: give a share of the adapters' norm, such as 0.05; bases in {dtype} are "
            f"rounded by up to {rounding:.1g} of it."
        )
    saved = [read_adapter(bank.layout.object_folder(found.version.object), encoder) for found in chosen]
    updates = [_update(found, one) for found, one in zip(chosen, saved, strict=True)]
    if len(updates) < 2:
        raise ConfigError("compress two adapters or more: they share what is saved.")
    for found, update in zip(chosen, updates, strict=True):
        if update.keys() != updates[0].keys():
            raise ConfigError(f"{found} acts on other projections than {chosen[0]}; compress them apart.")
    sought = (target_error**2 - (rounding / 2) ** 2) ** 0.5  # what the basis loses once it is rounded comes on top
    clusters = compress_jointly(updates, sought, dtype.itemsize, seed)
    before = sum(t.numel() * t.element_size() for one in saved for t in one.tensors.values())
    after = sum(one.bytes for one in clusters)
    if after >= before:
        raise ConfigError(
            f"nothing to gain: these adapters have so little in common that within an error of {target_error:g} they "
            f"take {after / 1e6:.1f} MB in place of {before / 1e6:.1f} MB; allow more, or choose others."
        )
    made: dict[int, Compressed] = {}
    with tempfile.TemporaryDirectory() as work:
        for number, one in enumerate(clusters):
            down, up = ({k: t.to(dtype) for k, t in pair.items()} for pair in (one.down, one.up))
            basis = Basis(down, up, {})
            folder = Path(work) / str(number)
            digest = write_basis(folder / "basis", basis, encoder.fingerprint)
            for place, member in enumerate(one.members):
                part = folder / str(member)
                cores = one.cores[place]
                _save(part, chosen[member], saved[member], digest, one.rank, cores, bank, basis)
                kept = bank.add(part, chosen[member].name, tags=(COMPRESSED,), **_labels(chosen[member]))
                made[member] = Compressed(chosen[member], kept, _error(updates[member], basis, cores))
    adapters = [made[i] for i in range(len(chosen))]
    sizes = [_weights(bank.layout.object_folder(one.after.version.object)) for one in adapters]
    shared = {digest for one in adapters for digest in one.after.version.needs}
    sizes += [_weights(bank.layout.object_folder(digest), "basis") for digest in shared]
    whole = sum(_weights(bank.layout.object_folder(found.version.object)) for found in chosen)
    return Compression(adapters, [one.rank for one in clusters], whole, sum(sizes))


def lost_features(model: SpeechAdapterModel, bank: Bank, one: Compressed, waveforms: Sequence[Tensor]) -> float:
    """How far the features move, as a share of what the adapter changes of the base's: the root of mean squares over
    all frames of ``waveforms``, (samples,) each."""
    moved = changed = 0.0
    names = {}
    for key, found in (("before", one.before), ("after", one.after)):
        names[key] = model.load_adapter(bank.layout.object_folder(found.version.object), name=f"compress-{key}")
    try:
        for waveform in waveforms:
            with torch.no_grad():
                features = {}
                for key, name in (("base", None), *names.items()):
                    model.set_active(name)
                    features[key] = model.eval()(waveform[None]).features
            moved += float((features["after"] - features["before"]).square().sum())
            changed += float((features["before"] - features["base"]).square().sum())
    finally:
        for name in names.values():
            model.delete_adapter(name)
    return (moved / changed) ** 0.5 if changed else 0.0


def word_errors(
    model: SpeechAdapterModel, bank: Bank, found: Found, waveforms: Iterable[Tensor], texts: Sequence[str]
) -> float | None:
    """WER of an adapter and its head on utterances; None without a CTC head."""
    from speech_adapters.heads.ctc import CTCHead
    from speech_adapters.inference.outputs import head_output
    from speech_adapters.metrics.wer import word_error_rate

    folder = bank.layout.object_folder(found.version.object)
    if found.facts.head != "ctc":
        return None
    adapter = model.load_adapter(folder, name="compress-one")
    head = model.load_head(folder, name="compress-head")
    try:
        assert model.head is not None and isinstance(model.head.config, CTCHead)
        with torch.no_grad():
            said = [model.head.predict(head_output(model.eval()(waveform[None])))[0] for waveform in waveforms]
        return float(word_error_rate(texts, said, normalizer=model.head.config.normalizer).wer.value)
    finally:
        model.delete_head(head)
        model.delete_adapter(adapter)


def _update(found: Found, saved: SavedAdapter) -> Update:
    """B with the scale in it, and A, of each projection."""
    config = saved.config
    if not isinstance(config, LoRA) or config.variant == "dora":
        raise ConfigError(f"{found} is {found.facts.method}; only plain and rank-stabilised LoRA are compressed.")
    scale = config.alpha / (config.rank**0.5 if config.variant == "rslora" else config.rank)
    update = {}
    for key, tensor in saved.tensors.items():
        if key.endswith(".lora_A.weight"):
            name = key.removesuffix(".lora_A.weight")
            b = saved.tensors[f"{name}.lora_B.weight"].float() * scale
            update[name.removeprefix("base_model.model.")] = (b, tensor.float())
    return dict(sorted(update.items()))


def _save(
    folder: Path,
    found: Found,
    saved: SavedAdapter,
    digest: str,
    rank: int,
    cores: Mapping[str, Tensor],
    bank: Bank,
    basis: Basis,
) -> None:
    """The compressed adapter, its basis and its head in one folder."""
    assert isinstance(saved.config, LoRA)
    config = LoRAXS(rank=rank, basis=digest, targets=saved.config.targets, layers=saved.config.layers)
    tensors = {f"base_model.model.{name}.core": core for name, core in cores.items()}
    card = {**saved.card, "compressed_from": str(found)}
    description = {"name": saved.name, "config": config.to_dict(), "base": vars(saved.base), "card": card}
    save_part(folder, "adapter", description, tensors)
    for name, content in basis.files.items():
        (folder / name).write_bytes(content)
    origin = bank.layout.object_folder(found.version.object)
    if (origin / "head.json").is_file():
        head = read_head(origin)
        own = AdapterIdentity(method=config.method, fingerprint=fingerprint(tensors))
        assert head.features is not None
        features = replace(head.features, adapters=dict.fromkeys(head.features.adapters, own))
        described = {"name": head.name, "config": head.config.to_dict(), "input_size": head.input_size}
        save_part(folder, "head", {**described, "features": asdict(features)}, head.tensors)


def _labels(found: Found) -> dict[str, Any]:
    facts = found.facts
    keys = ("task", "domain", "language", "licence", "data")
    return {**{key: getattr(facts, key) for key in keys}, "note": f"compressed from {found}"}


def _error(update: Update, basis: Basis, cores: Mapping[str, Tensor]) -> float:
    lost = whole = 0.0
    for name, (b, a) in update.items():
        near = basis.up[name].float() @ cores[name].float() @ basis.down[name].float()
        lost += float((b @ a - near).square().sum())
        whole += float((b @ a).square().sum())
    return (lost / whole) ** 0.5 if whole else 0.0


def _weights(folder: Path, kind: str = "adapter") -> int:
    return (folder / f"{kind}_model.safetensors").stat().st_size
