"""What people have in the place of a checkpoint in Hugging Face format, and what makes one of that."""

from __future__ import annotations

from pathlib import Path

_ORIGIN = "give the checkpoint in Hugging Face format that it was made from"

_STATE = "the state of a training, not a model: give the folder that its training saved the model in"

#: Names of a single weights file, the one that is taken first; shards have an index of this name with ".index.json".
SINGLE = ("model.safetensors", "pytorch_model.bin")

ADAPTER_HUB = "it is an adapter of the adapters library (AdapterHub), which cannot be imported: train it here anew"

#: Names of files and folders, in the order in which they are looked for, what they are and what to do.
OTHERS = {
    "pytorch_adapter.bin": ADAPTER_HUB,
    "adapter.safetensors": ADAPTER_HUB,
    "adapter_config.json": "it holds an adapter of peft: load its base, then call load_adapter(folder)",
    "model.safetensors.index.*.json": "it is a variant's: rename it to model.safetensors.index.json",
    "pytorch_model.bin.index.*.json": "it is a variant's: rename it to pytorch_model.bin.index.json",
    "*-of-*.safetensors": "a shard, it needs model.safetensors.index.json: download that too",
    "*-of-*.bin": "a shard, it needs pytorch_model.bin.index.json: download that too",
    "model.*.safetensors": "a variant: rename it to model.safetensors",
    "pytorch_model.*.bin": "a variant: rename it to pytorch_model.bin",
    "*.msgpack": "it is Flax's: load it with transformers and save_pretrained it for PyTorch",
    "*.h5": "it is TensorFlow's: load it with transformers and save_pretrained it for PyTorch",
    "*fsdp*": "shards of a training: consolidate them (accelerate merge-weights)",
    "global_step*": "shards of a training with DeepSpeed: consolidate them (zero_to_fp32.py)",
    "hyperparams.yaml": "it is SpeechBrain's: load it there and save_pretrained the transformers model that is inside",
    "*.onnx": f"a graph without the weights' names: {_ORIGIN}",
    "onnx": f"graphs without the weights' names: {_ORIGIN}",
    "ggml*.bin": f"it is whisper.cpp's: {_ORIGIN}",
    "*.gguf": f"it is of llama.cpp's kind: {_ORIGIN}",
    "model.bin": f"it is CTranslate2's (faster-whisper): {_ORIGIN}",
    "weights.npz": f"it is MLX's: {_ORIGIN}",
    "weights.safetensors": f"it is MLX's: {_ORIGIN}",
    "*.nemo": "it is NeMo's, whose encoders are of no family here: give a checkpoint of one of them",
    "checkpoints/*.pt": _STATE,
    "optimizer.pt": _STATE,
    "*.pt": "another toolkit's (fairseq's or OpenAI's, say): convert it with the script of its family in the "
    "repository of transformers (convert_*.py)",
    "*.ckpt": "a training's: save the model's part with save_pretrained",
}


def remedy_of(path: Path) -> str | None:
    """What to do with a file or folder of this name; None where it is none of these."""
    return next((remedy for pattern, remedy in OTHERS.items() if path.match(pattern)), None)


def others_in(folder: Path) -> str | None:
    """The first of these in a folder, with what to do; None where there is none, or weights that can be read."""
    if any((folder / name).exists() for file in SINGLE for name in (file, f"{file}.index.json")):
        return None
    found = (path for pattern in OTHERS for path in sorted(folder.glob(pattern)))
    first = next(found, None)
    return None if first is None else f"there is {first.name}, {remedy_of(first)}"
