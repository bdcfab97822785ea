"""Load any encoder of the families: a packaged small one, a local folder, or a hub id; frozen, ready for adapters.

Families: those of :mod:`speech_adapters.encoders.families`. Checkpoints of the bare encoder and of
``*ForCTC``, ``*ForSequenceClassification``, ``*ForPreTraining`` and the like load alike; a CTC head and its vocabulary
can be taken along (:attr:`Encoder.ctc`).
"""

from __future__ import annotations

import difflib
import hashlib
import json
import logging
import pickle
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from speech_adapters.encoders.families import FAMILIES, family_of
from speech_adapters.encoders.families.base import Family, Samples
from speech_adapters.encoders.forward import EncoderOutput, encode
from speech_adapters.encoders.pickling import let_pickle
from speech_adapters.encoders.quantization import Quantization, quantize_model
from speech_adapters.encoders.stock import StockModel
from speech_adapters.errors import CheckpointError, ConfigError

PACKAGED = Path(__file__).parent / "packaged"


@dataclass(frozen=True)
class CTCWeights:
    """The CTC head of a ``*ForCTC`` checkpoint: weight (V, D), bias (V,), path of ``vocab.json`` if it has one."""

    weight: Tensor
    bias: Tensor
    vocabulary: Path | None


class Encoder(nn.Module):
    """A frozen stock encoder and what must be known of it.

    Attributes:
        model: the stock ``transformers`` module; its parameters need no gradient and it never leaves eval mode.
        name, revision: where it came from.
        architecture: the family that the model belongs to, which knows its parts by name.
        normalize: whether waveforms are brought to zero mean and unit variance first (``do_normalize`` of
            ``preprocessor_config.json`` or ``processor_config.json``, else as the family's published checkpoints).
        ctc: the checkpoint's own CTC head, or None.
        num_parameters: of the stock model, however it is held.
        quantization: "int8", "int4" or "nf4" when :meth:`quantize` was called, else None.
    """

    def __init__(
        self,
        model: nn.Module,
        name: str,
        revision: str | None = None,
        normalize: bool = True,
        ctc: CTCWeights | None = None,
    ) -> None:
        super().__init__()
        self.model = cast(StockModel, model.requires_grad_(False).eval())
        self.architecture: Family = family_of(self.model.config)
        self.name, self.revision = name, revision
        self.normalize, self.ctc = normalize, ctc
        self.num_parameters = sum(parameter.numel() for parameter in model.parameters())
        self.quantization: Quantization | None = None
        self._fingerprint: str | None = None
        let_pickle(model)

    # ------------------------------------------------------------------ its parts

    def layer(self, index: int) -> nn.Module:
        """A transformer layer."""
        return self.architecture.layer_list(self.model)[index]

    def layer_name(self, index: int) -> str:
        """Full name of a layer inside the stock model."""
        return f"{self.architecture.layers}.{index}"

    def part(self, layer: int, name: str) -> nn.Module:
        """A part of a layer, without what ``peft`` has put around it.

        Args:
            name: "q_proj", "k_proj", "v_proj", "out_proj", "intermediate_dense", "intermediate_act", "output_dense",
                "layer_norm", "final_layer_norm" or "attention", whatever the family calls it.
        """
        found = self.architecture.part(self.layer(layer), name)
        return cast(nn.Module, getattr(found, "base_layer", found))

    def part_name(self, layer: int, name: str) -> str:
        """Full name of a part inside the stock model, as its tensors and ``peft``'s files have it."""
        return f"{self.layer_name(layer)}.{self.architecture.names[name]}"

    @property
    def final_norm(self) -> nn.Module | None:
        """The LayerNorm behind the last layer of a pre-norm encoder, else None."""
        return self.architecture.final_norm(self.model)

    @property
    def cnn_blocks(self) -> Sequence[nn.Module]:
        """The blocks of the convolutional front-end."""
        return self.architecture.blocks(self.model)

    @property
    def mask_embedding(self) -> Tensor | None:
        """(D,) in place of a hidden frame, or None in a family that was never pre-trained by masking."""
        return self.architecture.mask_embedding(self.model)

    def latents(self, cnn_output: Tensor) -> Tensor:
        """The front-end's output (B, T, C) as the feature projection reads it."""
        return self.architecture.latents(self.model, cnn_output)

    @property
    def preprocessor(self) -> dict[str, Any]:
        """What ``preprocessor_config.json`` says of this encoder."""
        return self.architecture.preprocessor(self.config, self.normalize)

    # ------------------------------------------------------------------ what it is

    @property
    def config(self) -> Any:
        """The ``transformers`` configuration."""
        return self.model.config

    @property
    def family(self) -> str:
        """``model_type`` of the configuration."""
        return self.architecture.model_type

    @property
    def hidden_size(self) -> int:
        """Width D of the layers."""
        return int(self.config.hidden_size)

    @property
    def intermediate_size(self) -> int:
        """Width of the feed-forward's hidden layer."""
        return self.architecture.intermediate_size(self.config)

    @property
    def cnn_width(self) -> int:
        """Channels C of the front-end's output."""
        return self.architecture.cnn_width(self.config)

    @property
    def layer_norm_eps(self) -> float:
        """Of the layers' LayerNorms."""
        return self.architecture.layer_norm_eps(self.config)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    @property
    def num_layers(self) -> int:
        """Transformer layers."""
        return len(self.architecture.layer_list(self.model))

    @property
    def pre_norm(self) -> bool:
        """True for Large-style layers (LayerNorm before each sub-layer), False for Base-style ones (after)."""
        return self.architecture.pre_norm(self.config)

    @property
    def group_norm(self) -> bool:
        """True when the CNN normalises over time (Base models): padding then changes what it computes."""
        return self.architecture.group_norm(self.config)

    @property
    def receptive_field(self) -> int:
        """Samples under one frame: the shortest usable input."""
        return self.architecture.receptive_field(self.config)

    @property
    def max_samples(self) -> int | None:
        """Samples of the longest usable input, or None where there is no limit."""
        return self.architecture.max_samples(self.config)

    @property
    def stride(self) -> int:
        """Samples from one frame to the next (320: 20 ms)."""
        return self.architecture.stride(self.config)

    def frame_lengths(self, samples: Samples) -> Samples:
        """Frames made of so many samples; number or tensor (B,)."""
        return self.architecture.frame_lengths(self.config, samples)

    def frame_centres(self, frames: int) -> Tensor:
        """The samples (T,) on which the first ``frames`` frames are centred."""
        return self.architecture.first_centre(self.config) + self.stride * torch.arange(frames)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all its frozen weights, as they were loaded."""
        if self._fingerprint is None:
            self._fingerprint = fingerprint(self.model.state_dict())
        return self._fingerprint

    def quantize(self, kind: Quantization) -> Encoder:
        """Hold the weights in 8 or 4 bits from now on; the fingerprint stays that of the weights as loaded.

        Raises:
            ConfigError: an unknown kind, or an encoder that is quantised or has LoRA layers in it already.
        """
        if self.quantization is not None or getattr(self.model, "peft_config", None):
            raise ConfigError(f"{self.name}: quantise an encoder once, before adapters are added.")
        _ = self.fingerprint
        quantize_model(self.model, kind)
        self.quantization = kind
        return self

    def train(self, mode: bool = True) -> Encoder:
        """A frozen encoder stays in eval mode: dropout and LayerDrop in it would only add noise to the adapters."""
        return super().train(False)

    def normalized(self, waveforms: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Waveforms (B, samples) at zero mean and unit variance over each one's real samples, zero after them."""
        if not self.normalize:
            return waveforms
        if lengths is None:
            mean, variance = waveforms.mean(1, keepdim=True), waveforms.var(1, correction=0, keepdim=True)
            return (waveforms - mean) / (variance + 1e-7).sqrt()
        real = torch.arange(waveforms.shape[1], device=waveforms.device) < lengths.unsqueeze(1)
        count = lengths.unsqueeze(1).to(waveforms.dtype)
        mean = (waveforms * real).sum(1, keepdim=True) / count
        centred = (waveforms - mean) * real
        return centred / (centred.square().sum(1, keepdim=True) / count + 1e-7).sqrt()

    def forward(self, waveforms: Tensor | None = None, lengths: Tensor | None = None, **options: Any) -> EncoderOutput:
        """:func:`~speech_adapters.encoders.forward.encode` on raw waveforms (normalised if the model wants it)."""
        if waveforms is not None:
            waveforms = self.normalized(waveforms, lengths)
        return encode(self.model, waveforms, lengths, **options)

    def extra_repr(self) -> str:
        norms = "pre-norm" if self.pre_norm else "post-norm"
        cnn = self.architecture.front_end_name(self.config)
        return (
            f"{self.name}: {self.architecture.title}, {self.num_layers} layers x {self.hidden_size}, "
            f"{norms}, {cnn}, frozen{f', {self.quantization}' if self.quantization else ''}"
        )

    def __repr__(self) -> str:
        return f"Encoder({self.extra_repr()})"


def packaged_encoders() -> list[str]:
    """Names of the small encoders that ship with the package."""
    return sorted(path.parent.name for path in PACKAGED.glob("*/config.json"))


def load_encoder(
    name_or_path: str | Path,
    *,
    revision: str | None = None,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    quantize: Quantization | None = None,
) -> Encoder:
    """Load a frozen encoder.

    Args:
        name_or_path: a packaged name ("tiny-wavlm"), a local folder in Hugging Face format, or a hub id
            ("microsoft/wavlm-base-plus").
        revision: branch, tag or commit on the hub.
        dtype: of the frozen weights, e.g. ``torch.bfloat16`` on a GPU. The fingerprint is taken before the cast.
        quantize: "int8", "int4" or "nf4": hold the frozen weights in so many bits; adapters stay as they are.

    Raises:
        ConfigError: no such name or folder, an unsupported family, or a hub id that is neither cached nor reachable.
        CheckpointError: a checkpoint cut short, without weights, with weights that are not finite or do not fit its
            configuration, or without a word on how its waveforms are prepared.
    """
    name = str(name_or_path)
    folder = _resolve(name, revision)
    model_type = _read_json(folder / "config.json").get("model_type")
    family = FAMILIES.get(model_type) if isinstance(model_type, str) else None
    if family is None:
        raise ConfigError(
            f"{name}: model_type {model_type!r} in config.json is not supported; supported: {', '.join(FAMILIES)}."
        )
    config = _load_config(folder, name)
    shapes = _stored_shapes(folder)
    if (fault := family.fault(config, shapes)) is not None:
        raise CheckpointError(f"{name}: config.json does not belong to these weights: {fault}; download both again.")
    normalize, ctc = _normalize(family, folder, config), _ctc_weights(folder, shapes)
    encoder = Encoder(_load_model(family, folder, name), name, revision, normalize, ctc)
    if dtype != torch.float32:
        _ = encoder.fingerprint
    if quantize is not None:
        encoder.quantize(quantize)
    encoder.model.to(device=device, dtype=dtype)
    return encoder


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over the names, shapes and bytes of tensors, in the order of their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        data = tensor.detach().cpu().contiguous()
        digest.update(f"{name}:{tuple(data.shape)}:".encode())
        digest.update(data.view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def check_finite(tensors: Mapping[str, Tensor], where: str) -> None:
    """Raise a CheckpointError that opens with ``where`` and names the first tensor with NaN or infinite values."""
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            continue
        # NaN and infinities do not leave a sum; it overflows at large values too, so each is looked at then.
        if not tensor.detach().float().sum().isfinite() and not tensor.detach().isfinite().all():
            raise CheckpointError(
                f"{where}: tensor {name!r} holds values that are not finite (NaN or infinite); take weights from "
                "before its training came apart."
            )


def _resolve(name: str, revision: str | None) -> Path:
    if name in packaged_encoders():
        return PACKAGED / name
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ConfigError(f"{name}: no config.json in this folder; give a folder in Hugging Face format.")
        return folder
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        near = difflib.get_close_matches(name, packaged_encoders(), n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ConfigError(
            f"unknown encoder {name!r}.{hint} Packaged: {', '.join(packaged_encoders()) or 'none'}; otherwise give a "
            "local folder or a hub id such as microsoft/wavlm-base-plus."
        )
    return _from_hub(name, revision)


def _from_hub(name: str, revision: str | None) -> Path:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

    wanted = ["*.json", "*.safetensors", "*.bin"]
    try:  # the cache first: a machine without network must not wait for one
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=wanted, local_files_only=True))
        if (folder / "config.json").is_file():
            return folder
    except (LocalEntryNotFoundError, FileNotFoundError):
        pass
    unreachable = (
        f"{name}: not a local folder, not in the hub cache, and {constants.ENDPOINT} cannot be reached. Use a "
        f"packaged encoder ({', '.join(packaged_encoders()) or 'none'}), or download it on a connected machine "
        f"(`hf download {name}`) and give its path."
    )
    if constants.HF_HUB_OFFLINE or not is_reachable(constants.ENDPOINT):
        raise ConfigError(unreachable)
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=wanted))
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise ConfigError(f"{name}: no such repository or revision {revision!r} on {constants.ENDPOINT}.") from error
    except OSError as error:
        raise ConfigError(f"{unreachable} ({error.__class__.__name__})") from error


def is_reachable(endpoint: str, seconds: float = 3.0) -> bool:
    """Whether the address of a hub answers within so many seconds."""
    import socket
    from urllib.parse import urlsplit

    address = urlsplit(endpoint)
    try:
        port = address.port or (443 if address.scheme == "https" else 80)
        socket.create_connection((address.hostname, port), timeout=seconds).close()
        return True
    except OSError:
        return False


def _load_config(folder: Path, name: str) -> Any:
    from transformers import AutoConfig

    with quiet_transformers():
        try:
            return AutoConfig.from_pretrained(folder, local_files_only=True)
        except Exception as error:  # whatever a foreign library makes of values that it did not expect
            raise CheckpointError(f"{folder / 'config.json'}: cannot be used ({_reason(error)}).") from error


def _load_model(family: Family, folder: Path, name: str) -> nn.Module:
    with quiet_transformers():
        try:
            model, report = family.load(folder, dtype=torch.float32, local_files_only=True)
        except Exception as error:  # as above
            raise CheckpointError(
                f"{name}: its weights cannot be read ({_reason(error)}); the checkpoint is cut short, changed, or not "
                "made for its config.json: download it again."
            ) from error
    missing = sorted(report["missing_keys"])
    if missing or report.get("mismatched_keys"):
        lacking = ", ".join(missing[:3]) or ", ".join(str(key) for key in list(report["mismatched_keys"])[:3])
        raise CheckpointError(
            f"{name}: the checkpoint lacks {len(missing)} of the encoder's tensors or has them in other shapes "
            f"({lacking} ...); it belongs to another architecture or is incomplete."
        )
    check_finite(model.state_dict(), name)
    return model


def _normalize(family: Family, folder: Path, config: Any) -> bool:
    """``do_normalize`` of the folder's preprocessor file, else of the family's published checkpoints."""
    for file in ("preprocessor_config.json", "processor_config.json"):  # transformers 5 writes the latter
        if not (folder / file).is_file():
            continue
        values = _read_json(folder / file)
        nested = values.get("feature_extractor")
        values = nested if isinstance(nested, dict) else values
        expected = family.preprocessor(config, normalize=True)
        for key in ("sampling_rate", "feature_size", "n_fft", "hop_length"):
            if key in values and key in expected and values[key] != expected[key]:
                raise CheckpointError(
                    f"{folder / file}: {key} is {values[key]!r}; this encoder takes {expected[key]}."
                )
        value = values.get("do_normalize")
        if isinstance(value, bool):
            return value
        if value is not None:
            raise CheckpointError(f"{folder / file}: do_normalize is {value!r}; it is true or false.")
    published = family.published_normalize(config)
    if published is None:
        raise CheckpointError(
            f"{folder}: no do_normalize in preprocessor_config.json, which says whether waveforms are brought to zero "
            "mean and unit variance; add the file that the checkpoint was published with."
        )
    return published


def _weight_files(folder: Path) -> dict[Path, set[str] | None]:
    """The files that ``transformers`` takes the weights from, and which tensors of each: None for all.

    Raises:
        CheckpointError: there are none, or what has their name is something else.
    """
    for single in ("model.safetensors", "pytorch_model.bin"):
        index = folder / f"{single}.index.json"
        if (folder / single).is_file():
            files: dict[Path, set[str] | None] = {folder / single: None}
        elif index.is_file():
            places = _read_json(index).get("weight_map")
            if not isinstance(places, dict) or not all(isinstance(place, str) for place in places.values()):
                raise CheckpointError(f"{index}: its weight_map gives no file for each tensor; download it again.")
            names = {folder / place: {key for key in places if places[key] == place} for place in places.values()}
            files = {path: names[path] for path in sorted(names)}
        else:
            continue
        for path in files:
            _check_start(path)
        return files
    raise CheckpointError(f"{folder}: no model.safetensors or pytorch_model.bin; download the folder again.")


def _check_start(path: Path) -> None:
    """Name what often lies in the place of weights: pointers, web pages, nothing."""
    try:
        with path.open("rb") as file:
            start = file.read(64).lstrip().lower()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error}); download it again.") from error
    if start.startswith(b"version https://git-lfs"):
        fault = "is a Git LFS pointer, not the weights: run git lfs pull in its folder, or"
    elif start.startswith((b"<!doctype", b"<html", b"<?xml")):
        fault = "is a web page, not the weights:"
    elif not start:
        fault = "is empty:"
    else:
        return
    raise CheckpointError(f"{path}: {fault} download it again.")


def _stored_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of a checkpoint's tensors by name, from the headers of its files.

    Raises:
        CheckpointError: no weights, or a file that is cut short or is none of tensors.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for path, names in _weight_files(folder).items():
        with _open_tensors(path, names) as tensors:
            shapes |= tensors.shapes
    return shapes


class _Tensors(NamedTuple):
    """An open weights file: the shapes of its tensors, and each of them by name."""

    shapes: dict[str, tuple[int, ...]]
    get: Callable[[str], Tensor]


@contextmanager
def _open_tensors(path: Path, names: set[str] | None) -> Iterator[_Tensors]:
    """A weights file of either kind, for reading single tensors; nothing that it holds is run as code."""
    from safetensors import SafetensorError, safe_open

    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                keys = [key for key in file.keys() if names is None or key in names]  # noqa: SIM118
                yield _Tensors({key: tuple(file.get_slice(key).get_shape()) for key in keys}, file.get_tensor)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
            held = {key: tensor for key, tensor in content.items() if isinstance(tensor, Tensor)}
            keys = [key for key in held if names is None or key in names]
            yield _Tensors({key: tuple(held[key].shape) for key in keys}, held.__getitem__)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, AttributeError, OSError) as error:
        raise CheckpointError(
            f"{path}: cut short, changed, or not a file of tensors and of nothing else; download it again."
        ) from error


def checkpoint_file(name_or_path: str | Path, file: str) -> Path | None:
    """A file of a checkpoint, such as ``vocab.json``, or None where it has none; errors as of :func:`load_encoder`."""
    path = _resolve(str(name_or_path), None) / file
    return path if path.is_file() else None


def stored_tensors(encoder: Encoder, parts: Sequence[str]) -> dict[str, Tensor]:
    """Float32 tensors beside the encoder in its checkpoint whose names start with one of ``parts``, such as
    ``quantizer`` of wav2vec 2.0's pre-training head; none where it has none or did not come from a checkpoint."""
    try:
        folder = _resolve(encoder.name, encoder.revision)
    except ConfigError:  # an encoder made in memory
        return {}
    found: dict[str, Tensor] = {}
    for path, names in _weight_files(folder).items():
        with _open_tensors(path, names) as tensors:
            found |= {k: tensors.get(k).float() for k in tensors.shapes if k.split(".")[0] in parts}
    return found


def _ctc_weights(folder: Path, shapes: Mapping[str, tuple[int, ...]]) -> CTCWeights | None:
    names = ("lm_head.weight", "lm_head.bias")
    if names[0] not in shapes:
        return None
    if names[1] not in shapes or shapes[names[1]] != shapes[names[0]][:1] or len(shapes[names[0]]) != 2:
        raise CheckpointError(
            f"{folder}: its CTC head needs lm_head.weight (V, D) and lm_head.bias (V,), and has "
            f"{ {name: shapes.get(name) for name in names} }; it is incomplete: download it again."
        )
    found: dict[str, Tensor] = {}
    for path, stored in _weight_files(folder).items():
        with _open_tensors(path, stored) as tensors:
            found |= {name: tensors.get(name).float() for name in names if name in tensors.shapes}
    check_finite(found, str(folder))
    vocabulary = folder / "vocab.json"
    return CTCWeights(found[names[0]], found[names[1]], vocabulary if vocabulary.is_file() else None)


def _reason(error: Exception) -> str:
    """The first line of a foreign error, for a message of ours."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".:")[:300] if lines else type(error).__name__


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read as JSON ({error}); download the folder again.") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds no keys with values; download the folder again.")
    return content


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Hide loading reports: what a user can act on becomes an error here, an unused head is no news."""
    from transformers.utils import logging as transformers_logging

    before = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(logging.CRITICAL)
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)
        if bars:
            transformers_logging.enable_progress_bar()
