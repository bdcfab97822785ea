"""Folders of ``peft`` for a base under a head, which ``PeftModel.from_pretrained`` opens."""

from __future__ import annotations

import os
from pathlib import Path

from speech_adapters.adapters.base import AdapterModule
from speech_adapters.encoders.encoder import Encoder
from speech_adapters.encoders.tensors import check_finite
from speech_adapters.errors import MethodError
from speech_adapters.files import new_folder, write_text
from speech_adapters.heads.base import HeadModule
from speech_adapters.saving.adapters import peft_text
from speech_adapters.saving.peft_import import CONFIG_FILE, PREFIX, WEIGHTS_FILE
from speech_adapters.saving.stock import headed_model, stock_head


def save_peft(encoder: Encoder, module: AdapterModule, head: HeadModule, folder: str | os.PathLike[str]) -> Path:
    """Save an adapter and a head under the names that they have in the head's stock class; returns the folder.

    Raises:
        MethodError: one that ``peft`` does not have.
        ConfigError: a head that no stock class holds, a folder that is taken.
        CheckpointError: a tensor that is not finite.
        InputError: a folder that cannot be written.
    """
    from safetensors.torch import save_file

    config = module.config.peft_config(encoder)
    if config is None:
        raise MethodError(
            f"{module.config.method}: peft has no such method; keep it as an adapter, or as an ONNX graph, which "
            "holds any (save_onnx, export --onnx)."
        )
    stock = stock_head(head, encoder)
    inside = f"{headed_model(encoder, stock).base_model_prefix}."
    for names in ("target_modules", "feedforward_modules"):  # the latter of IA3
        if getattr(config, names, None):
            setattr(config, names, [inside + name for name in sorted(getattr(config, names))])
    config.modules_to_save = stock.modules
    tensors = {name.replace(PREFIX, PREFIX + inside, 1): tensor for name, tensor in module.tensors().items()}
    tensors |= {PREFIX + name: tensor for name, tensor in stock.tensors.items()}
    check_finite(tensors, f"{folder}: not saved")
    with new_folder(folder) as temporary:
        plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        save_file(plain, temporary / WEIGHTS_FILE)
        write_text(temporary / CONFIG_FILE, peft_text(config))
        if stock.vocabulary is not None:
            stock.vocabulary.save(temporary)
    return Path(folder)
