"""Load any encoder of the families: a packaged small one, a local folder, or a hub id; frozen, ready for adapters.

Families: wav2vec 2.0, HuBERT, WavLM, data2vec-audio and UniSpeech-SAT. Checkpoints of the bare encoder and of
``*ForCTC``, ``*ForSequenceClassification``, ``*ForPreTraining`` and the like load alike; a CTC head and its vocabulary
can be taken along (:attr:`Encoder.ctc`).
"""

from __future__ import annotations

import difflib
import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from speech_adapters.encoders.forward import EncoderOutput, Samples, encode, frame_lengths, receptive_field
from speech_adapters.encoders.pickling import let_pickle
from speech_adapters.encoders.quantization import Quantization, quantize_model
from speech_adapters.encoders.stock import StockConfig, StockModel
from speech_adapters.errors import CheckpointError, ConfigError

FAMILIES = {
    "wav2vec2": "wav2vec 2.0",
    "hubert": "HuBERT",
    "wavlm": "WavLM",
    "data2vec-audio": "data2vec-audio",
    "unispeech-sat": "UniSpeech-SAT",
}
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
        name, revision: where it came from; family: a key of ``FAMILIES``.
        normalize: whether waveforms are brought to zero mean and unit variance first (``preprocessor_config.json``).
        ctc: the checkpoint's own CTC head, or None.
        num_parameters: of the stock model, however it is held.
        quantization: "int8", "int4" or "nf4" when :meth:`quantize` was called, else None.
        fingerprint: SHA-256 of all its frozen weights, as they were loaded.
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
        self.name, self.revision = name, revision
        self.normalize, self.ctc = normalize, ctc
        self.num_parameters = sum(parameter.numel() for parameter in model.parameters())
        self.quantization: Quantization | None = None
        self._fingerprint: str | None = None
        let_pickle(model)

    @property
    def config(self) -> StockConfig:
        return self.model.config

    @property
    def family(self) -> str:
        return self.config.model_type

    @property
    def hidden_size(self) -> int:
        return self.config.hidden_size

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def num_layers(self) -> int:
        return len(self.model.encoder.layers)

    @property
    def pre_norm(self) -> bool:
        """True for Large-style layers (LayerNorm before each sub-layer), False for Base-style ones (after)."""
        return bool(getattr(self.config, "do_stable_layer_norm", False))

    @property
    def group_norm(self) -> bool:
        """True when the CNN normalises over time (Base models): padding then changes what it computes."""
        return getattr(self.config, "feat_extract_norm", "layer") == "group"

    @property
    def receptive_field(self) -> int:
        """Samples under one frame: the shortest usable input."""
        return receptive_field(self.config)

    @property
    def stride(self) -> int:
        """Samples from one frame to the next (320: 20 ms)."""
        stride = 1
        for step in self.config.conv_stride:
            stride *= step
        return stride

    @property
    def fingerprint(self) -> str:
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

    def frame_lengths(self, samples: Samples) -> Samples:
        """Frames made of so many samples; number or tensor (B,)."""
        return frame_lengths(self.config, samples)

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

    def forward(self, waveforms: Tensor | None = None, lengths: Tensor | None = None, **options) -> EncoderOutput:
        """:func:`~speech_adapters.encoders.forward.encode` on raw waveforms (normalised if the model wants it)."""
        if waveforms is not None:
            waveforms = self.normalized(waveforms, lengths).to(self.model.dtype)
        return encode(self.model, waveforms, lengths, **options)

    def extra_repr(self) -> str:
        norms = "pre-norm" if self.pre_norm else "post-norm"
        cnn = "group-norm CNN" if self.group_norm else "layer-norm CNN"
        return (
            f"{self.name}: {FAMILIES.get(self.family, self.family)}, {self.num_layers} layers x {self.hidden_size}, "
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
        CheckpointError: a checkpoint cut short, without weights, or whose tensors do not fit its configuration.
    """
    name = str(name_or_path)
    folder = _resolve(name, revision)
    config = _read_json(folder / "config.json")
    family = config.get("model_type")
    if family not in FAMILIES:
        raise ConfigError(
            f"{name}: model_type {family!r} in config.json is not supported; supported: {', '.join(FAMILIES)}."
        )
    model = _load_model(folder, name)
    preprocessor = folder / "preprocessor_config.json"
    normalize = _read_json(preprocessor).get("do_normalize", True) if preprocessor.is_file() else True
    encoder = Encoder(model, name, revision, bool(normalize), _ctc_weights(folder))
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
    if constants.HF_HUB_OFFLINE or not _reachable(constants.ENDPOINT):
        raise ConfigError(unreachable)
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=wanted))
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise ConfigError(f"{name}: no such repository or revision {revision!r} on {constants.ENDPOINT}.") from error
    except OSError as error:
        raise ConfigError(f"{unreachable} ({error.__class__.__name__})") from error


def _reachable(endpoint: str, seconds: float = 3.0) -> bool:
    import socket
    from urllib.parse import urlsplit

    address = urlsplit(endpoint)
    try:
        port = address.port or (443 if address.scheme == "https" else 80)
        socket.create_connection((address.hostname, port), timeout=seconds).close()
        return True
    except OSError:
        return False


def _load_model(folder: Path, name: str) -> nn.Module:
    from safetensors import SafetensorError
    from transformers import AutoModel

    with _quiet_transformers():
        try:
            model, report = AutoModel.from_pretrained(
                folder, dtype=torch.float32, output_loading_info=True, local_files_only=True
            )
        except (SafetensorError, OSError, RuntimeError, EOFError, ValueError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else error.__class__.__name__
            raise CheckpointError(
                f"{name}: its weights cannot be read ({reason}); the checkpoint is cut short, changed, or not made "
                "for its config.json: download it again."
            ) from error
    # The mask embedding is only learnt by masked pre-training; every other tensor must be there.
    missing = sorted(key for key in report["missing_keys"] if key != "masked_spec_embed")
    if missing or report.get("mismatched_keys"):
        lacking = ", ".join(missing[:3]) or ", ".join(str(key) for key in list(report["mismatched_keys"])[:3])
        raise CheckpointError(
            f"{name}: the checkpoint lacks {len(missing)} of the encoder's tensors or has them in other shapes "
            f"({lacking} ...); it belongs to another architecture or is incomplete."
        )
    return model


def stored_tensors(encoder: Encoder, parts: Sequence[str]) -> dict[str, Tensor]:
    """Float32 tensors beside the encoder in its checkpoint whose names start with one of ``parts``, such as
    ``quantizer`` of wav2vec 2.0's pre-training head; none where it has none or did not come from a checkpoint."""
    from safetensors import safe_open

    try:
        folder = _resolve(encoder.name, encoder.revision)
    except ConfigError:  # an encoder made in memory
        return {}
    found: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as tensors:
            found |= {k: tensors.get_tensor(k).float() for k in tensors.keys() if k.split(".")[0] in parts}
    if not found:
        for path in sorted(folder.glob("pytorch_model*.bin")):
            tensors = torch.load(path, map_location="cpu", weights_only=True)
            found |= {k: tensor.float() for k, tensor in tensors.items() if k.split(".")[0] in parts}
    return found


def _ctc_weights(folder: Path) -> CTCWeights | None:
    from safetensors import safe_open

    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as tensors:
            if "lm_head.weight" in tensors.keys():
                vocabulary = folder / "vocab.json"
                weight, bias = tensors.get_tensor("lm_head.weight"), tensors.get_tensor("lm_head.bias")
                return CTCWeights(weight.float(), bias.float(), vocabulary if vocabulary.is_file() else None)
    return None


def _read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path}: cannot be read as JSON ({error}); download the folder again.") from error


@contextmanager
def _quiet_transformers():
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
