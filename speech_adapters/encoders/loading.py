"""Load any encoder of the families: a packaged small one, a local folder, or a hub id; frozen, ready for adapters.

Families: those of :mod:`speech_adapters.encoders.families`. Checkpoints of the bare encoder and of
``*ForCTC``, ``*ForSequenceClassification``, ``*ForPreTraining`` and the like load alike; a CTC head and its vocabulary
can be taken along (:attr:`Encoder.ctc`).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from speech_adapters.encoders.ctc import read_ctc
from speech_adapters.encoders.encoder import Encoder
from speech_adapters.encoders.families import family_named
from speech_adapters.encoders.families.base import Family
from speech_adapters.encoders.json_files import read_json
from speech_adapters.encoders.language import language_tensors, speak, spoken
from speech_adapters.encoders.preprocessing import read_normalize
from speech_adapters.encoders.quantization import Quantization
from speech_adapters.encoders.sources import find_folder
from speech_adapters.encoders.tensors import check_finite
from speech_adapters.encoders.weights import read_tensors, stored_shapes
from speech_adapters.errors import CheckpointError, ConfigError


def load_encoder(
    name_or_path: str | Path,
    *,
    revision: str | None = None,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    quantize: Quantization | None = None,
    target_lang: str | None = None,
) -> Encoder:
    """Load a frozen encoder.

    Args:
        name_or_path: a packaged name ("tiny-wavlm"), a local folder in Hugging Face format, or a hub id
            ("microsoft/wavlm-base-plus").
        revision: branch, tag or commit on the hub.
        dtype: of the frozen weights, e.g. ``torch.bfloat16`` on a GPU. The fingerprint is taken before the cast.
        quantize: "int8", "int4" or "nf4": hold the frozen weights in so many bits; adapters stay as they are.
        target_lang: the language of an MMS checkpoint ("fra", "uzb-script_cyrillic"); None for the one that its
            weights have.

    Raises:
        ConfigError: no such name, folder or language, an unsupported family, or a hub id that is neither cached nor
            reachable.
        CheckpointError: a checkpoint cut short, without weights, with weights that are not finite or do not fit its
            configuration, or without a word on how its waveforms are prepared.
    """
    name = str(name_or_path)
    folder = find_folder(name, revision, target_lang)
    try:
        family = family_named(read_json(folder / "config.json").get("model_type"))
    except ConfigError as error:
        raise ConfigError(f"{name}: config.json: {error}") from error
    config = _load_config(family, folder)
    shapes = stored_shapes(folder)
    if (fault := family.fault(config, shapes)) is not None:
        raise CheckpointError(f"{name}: config.json does not belong to these weights: {fault}; download both again.")
    normalize = read_normalize(family, folder, config)
    language = spoken(folder, target_lang)
    own = {} if target_lang is None else language_tensors(folder, target_lang)
    ctc = read_ctc(folder, shapes, language, own)
    model = _load_model(family, folder, name)
    if own:
        speak(model, own, f"{name}, target_lang={target_lang!r}")
    encoder = Encoder(model, name, revision, normalize, ctc, folder=folder, language=language)
    if dtype != torch.float32:
        _ = encoder.fingerprint
    if quantize is not None:
        encoder.quantize(quantize)
    encoder.model.to(device=device, dtype=dtype)
    return encoder


def stored_tensors(encoder: Encoder, parts: Sequence[str]) -> dict[str, Tensor]:
    """Float32 tensors beside the encoder in its checkpoint whose names start with one of ``parts``, such as
    ``quantizer`` of wav2vec 2.0's pre-training head; none where it has none or did not come from a checkpoint."""
    return {} if encoder.folder is None else read_tensors(encoder.folder, lambda name: name.split(".")[0] in parts)


<<<<<<< HEAD
def _load_config(family: Family, folder: Path) -> Any:
    with quiet_transformers():
=======
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
>>>>>>> text
        try:
            return family.read_config(folder)
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


def _reason(error: Exception) -> str:
    """The first line of a foreign error, for a message of ours."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".:")[:300] if lines else type(error).__name__


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
