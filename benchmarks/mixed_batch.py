"""A batch that mixes adapters against the same batch under one adapter: time of a forward, for every kind.

    python benchmarks/mixed_batch.py                                # 32 utterances over 16 adapters, packaged encoder
    python benchmarks/mixed_batch.py --encoder base --seconds 5     # base-sized, random weights
    python benchmarks/mixed_batch.py --kinds lora --adapters 1 2 4 8 16 32

Beside LoRA stands ``peft``'s own mixed batch (``adapter_names=[...]``) against its own single adapter, on stock
wav2vec 2.0 of the same size, since stock WavLM's attention does not run LoRA. Runs of all variants alternate, the
first round is thrown away, medians are printed. Ratios below 1.0x are noise.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable

import torch
from transformers import AutoConfig, AutoModel

from speech_adapters import SpeechAdapterModel
from speech_adapters.adapters import Bottleneck, LoRA, PAdapter
from speech_adapters.adapters.bottleneck import SITES
from speech_adapters.encoders import Encoder, load_encoder

KINDS = {
    "e": lambda: "e",
    "elp": lambda: "elp",
    "houlsby": lambda: Bottleneck(sites=SITES),
    "pfeiffer": lambda: Bottleneck(placement="pfeiffer"),
    "lora": lambda: LoRA(),
    "p": lambda: PAdapter(),
}


def encoder_of(name: str) -> Encoder:
    """A packaged or local encoder, or "base": WavLM Base+ in size, random weights, a CNN that bears padding."""
    if name != "base":
        return load_encoder(name)
    config = AutoConfig.for_model("wavlm", feat_extract_norm="layer", conv_bias=True)
    return Encoder(AutoModel.from_config(config).eval(), "base")


def median_times(steps: dict[str, Callable[[], object]], runs: int, device: torch.device) -> dict[str, float]:
    """Median seconds of each step; the steps take turns."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(runs + 1):
        for name, step in steps.items():
            started = time.perf_counter()
            step()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times[name].append(time.perf_counter() - started)
    return {name: statistics.median(own[1:]) for name, own in times.items()}


def our_steps(
    encoder: Encoder, kind: str, waveforms: torch.Tensor, counts: list[int]
) -> dict[str, Callable[[], object]]:
    """One adapter for the batch, and mixed batches over ``counts`` adapters."""
    model = SpeechAdapterModel(copy.deepcopy(encoder))
    for number in range(max(counts)):
        model.add_adapter(f"a{number}", KINDS[kind]())
    model.set_active("a0")
    choices = {count: [f"a{place % count}" for place in range(len(waveforms))] for count in counts}
    mixed = {f"{count}": (lambda own=own: model(waveforms, adapter=own)) for count, own in choices.items()}
    return {"one": lambda: model(waveforms), **mixed}


def peft_steps(encoder: Encoder, waveforms: torch.Tensor, counts: list[int]) -> dict[str, Callable[[], object]]:
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
    mixed = {f"peft {count}": (lambda own=own: model(waveforms, adapter_names=own)) for count, own in names.items()}
    return {"peft one": lambda: model(waveforms), **mixed}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default="tiny-wavlm", help="packaged name, folder or hub id, or base")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--adapters", nargs="+", type=int, default=[16], help="adapters in the mixed batch")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=3.0, help="length of each utterance")
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    encoder = encoder_of(arguments.encoder)
    encoder.model.to(device)
    waveforms = torch.randn(arguments.batch, int(arguments.seconds * 16_000), device=device)
    print(
        f"{arguments.encoder}, {arguments.batch} x {arguments.seconds:g} s, {device.type}, {arguments.threads} "
        f"thread(s), median of {arguments.runs} interleaved runs"
    )
    for kind in arguments.kinds:
        steps = our_steps(encoder, kind, waveforms, arguments.adapters)
        if kind == "lora":
            steps |= peft_steps(encoder, waveforms, arguments.adapters)
        with torch.no_grad():
            times = median_times(steps, arguments.runs, device)
        for name, seconds in times.items():
            single = times["peft one" if name.startswith("peft") else "one"]
            print(f"  {kind:10s} {name:>8s} {seconds:7.3f} s   {seconds / single:5.2f} x one", flush=True)


if __name__ == "__main__":
    main()
