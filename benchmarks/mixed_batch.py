"""A batch that mixes adapters against the same batch under one adapter: time of a forward, for every kind.

    python benchmarks/mixed_batch.py                                # 32 utterances over 16 adapters, packaged encoder
    python benchmarks/mixed_batch.py --encoder base --seconds 5     # base-sized, random weights
    python benchmarks/mixed_batch.py --kinds lora --adapters 1 2 4 8 16 32

Beside LoRA stands ``peft``'s own mixed batch (``adapter_names=[...]``) against its own single adapter, on stock
wav2vec 2.0 of the same size, since stock WavLM's attention does not run LoRA.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from material import encoder_of
from timing import Record, in_turns, parse, parser_of, the_device
from transformers import AutoConfig, AutoModel

from speech_adapters import SpeechAdapterModel
from speech_adapters.adapters import Bottleneck, LoRA, PAdapter
from speech_adapters.adapters.bottleneck import SITES
from speech_adapters.encoders import Encoder

KINDS = {
    "e": lambda: "e",
    "elp": lambda: "elp",
    "houlsby": lambda: Bottleneck(sites=SITES),
    "pfeiffer": lambda: Bottleneck(placement="pfeiffer"),
    "lora": lambda: LoRA(),
    "p": lambda: PAdapter(),
}

Forwards = dict[str, Callable[[], object]]


def our_forwards(encoder: Encoder, kind: str, waveforms: torch.Tensor, counts: list[int]) -> Forwards:
    """One adapter for the batch, and mixed batches over ``counts`` adapters."""
    model = SpeechAdapterModel(copy.deepcopy(encoder))
    for number in range(max(counts)):
        model.add_adapter(f"a{number}", KINDS[kind]())
    model.set_active("a0")
    choices = {count: [f"a{place % count}" for place in range(len(waveforms))] for count in counts}
    mixed = {f"{count} adapters": (lambda own=own: model(waveforms, adapter=own)) for count, own in choices.items()}
    return {"one": lambda: model(waveforms), **mixed}


def peft_forwards(encoder: Encoder, waveforms: torch.Tensor, counts: list[int]) -> Forwards:
    """``peft`` on stock wav2vec 2.0 of the encoder's size: one adapter, and its mixed batches over ``counts``."""
    from peft import LoraConfig, get_peft_model

    keys = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "conv_dim", "conv_kernel",
            "conv_stride", "num_feat_extract_layers", "feat_extract_norm", "conv_bias", "do_stable_layer_norm",
            "num_conv_pos_embeddings", "num_conv_pos_embedding_groups")  # fmt: skip
    config = AutoConfig.for_model("wav2vec2", **{key: getattr(encoder.config, key) for key in keys})
    lora = LoraConfig(r=8, lora_alpha=8, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    model = get_peft_model(AutoModel.from_config(config), lora, adapter_name="a0")
    for number in range(1, max(counts)):
        model.add_adapter(f"a{number}", lora)
    model = model.to(waveforms.device).eval()
    names = {count: [f"a{place % count}" for place in range(len(waveforms))] for count in counts}
    mixed = {
        f"{count} adapters": (lambda own=own: model(waveforms, adapter_names=own)) for count, own in names.items()
    }
    return {"one": lambda: model(waveforms), **mixed}


@torch.no_grad()
def main() -> None:
    parser = parser_of(__doc__, rounds=7)
    parser.add_argument("--encoder", default="tiny-wavlm", help="packaged name, folder or hub id, or base")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--adapters", nargs="+", type=int, default=[16], help="adapters in the mixed batch")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=3.0, help="length of each utterance")
    quick = {"kinds": ["lora"], "adapters": [2], "batch": 4, "seconds": 1.0}
    arguments, device = parse(parser, quick), the_device()
    record = Record(arguments, device)
    encoder = encoder_of(arguments.encoder, bears_padding=True)
    encoder.model.to(device)
    waveforms = torch.randn(arguments.batch, int(arguments.seconds * 16_000), device=device)
    shape = f"{arguments.encoder}, {arguments.batch} x {arguments.seconds:g} s"
    for kind in arguments.kinds:
        rows = in_turns(our_forwards(encoder, kind, waveforms, arguments.adapters), arguments.rounds, device)
        record.add(f"{kind}, {shape}", rows, "one")
    if "lora" in arguments.kinds:
        rows = in_turns(peft_forwards(encoder, waveforms, arguments.adapters), arguments.rounds, device)
        record.add(f"peft's LoRA on wav2vec 2.0 of that size, {shape}", rows, "one")
    record.write()


if __name__ == "__main__":
    main()
