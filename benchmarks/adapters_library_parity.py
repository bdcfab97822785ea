"""Our bottleneck adapters against those of the public `adapters` library, with the same weights.

    python benchmarks/adapters_library_parity.py --python /path/to/other/venv/bin/python

`adapters` 1.3.0 needs transformers 4.57, so it runs in an environment of its own, made by

    python -m venv other && other/bin/pip install adapters==1.3.0 torch

Each case builds a small random encoder here, saves it, gives the adapter random weights, and hands encoder, weights
and waveforms to the other environment, where the library's plug-in interface puts its own adapters into the stock
model. Printed are the greatest difference between the two outputs and, beside it, how far the adapter moves the output
at all; above the bar of 1e-5 the exit code is 1.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import torch

BAR = 1e-5
FAMILIES, STYLES = ("wav2vec2", "hubert"), ("post-norm", "pre-norm")

#: name -> (our settings, the library's config class and settings)
CASES = {
    "houlsby": (
        {"sites": ["attention", "feed_forward"], "activation": "swish"},
        ("DoubleSeqBnConfig", {"reduction_factor": 8, "non_linearity": "swish"}),
    ),
    "serial": (
        {"sites": ["feed_forward"], "activation": "relu"},
        ("SeqBnConfig", {"reduction_factor": 8, "original_ln_before": False, "residual_before_ln": True}),
    ),
    "pfeiffer": (
        {"placement": "pfeiffer"},
        ("SeqBnConfig", {"reduction_factor": 8}),
    ),
    "parallel": (
        {"placement": "parallel", "scale": 4.0},
        ("ParBnConfig", {"reduction_factor": 8, "scaling": 4.0}),
    ),
}
#: The Pfeiffer form reads LN(f + residual), but a pre-norm layer has no LayerNorm after the addition. Ours reads the
#: plain sum there; the library, which takes the feed-forward's input for the residual, reads LN(f + LN(residual)).
OTHER_FORMULA = "pre-norm pfeiffer"
#: Where the library finds the parts of a stock wav2vec 2.0 or HuBERT.
INTERFACE = {
    "adapter_methods": ["bottleneck"],
    "model_embeddings": "feature_projection",
    "model_layers": "encoder.layers",
    "layer_self_attn": "attention",
    "layer_cross_attn": None,
    "attn_k_proj": "k_proj",
    "attn_q_proj": "q_proj",
    "attn_v_proj": "v_proj",
    "attn_o_proj": "out_proj",
    "layer_intermediate_proj": "feed_forward.intermediate_dense",
    "layer_output_proj": "feed_forward.output_dense",
    "layer_pre_self_attn": "attention",
    "layer_pre_ffn": "feed_forward",
    "layer_ln_1": "layer_norm",
    "layer_ln_2": "final_layer_norm",
}
#: Our site -> the library's place in a layer.
PLACES = {"attention": "attention_adapters", "feed_forward": "output_adapters"}

Weights = dict[str, tuple[torch.Tensor, torch.Tensor | None]]


def small_model(family: str, style: str):
    """Our model on a small random encoder."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from small_encoders import small_encoder

    from speech_adapters import SpeechAdapterModel

    return SpeechAdapterModel(small_encoder(family, style))


def bottleneck(case: str):
    """Our adapter of a case."""
    from speech_adapters.adapters import Bottleneck

    settings = {key: tuple(v) if isinstance(v, list) else v for key, v in CASES[case][0].items()}
    return Bottleneck(reduction_factor=8, **settings)


def weights_of(model, name: str) -> Weights:
    """An adapter's weights and biases by the library's "place|layer|part"."""
    return {
        f"{PLACES[site]}|{index}|adapters.{name}.{part}": (linear.weight.detach(), linear.bias.detach())
        for site, layers in model.adapters[name].sites.items()
        for index, layer in layers.items()
        for part, linear in (("adapter_down.0", layer.down), ("adapter_up", layer.up))
    }


def hand_over(folder: Path, model, weights: Weights, case: str, *beside) -> tuple[torch.Tensor, torch.Tensor]:
    """Write what the other side needs; returns our output (B, T, D) as the model is, and with ``beside`` active."""
    encoder = model.encoder
    waveforms = encoder.normalized(torch.randn(2, 6400))
    encoder.model.save_pretrained(folder / "encoder")
    torch.save({"weights": weights, "waveforms": waveforms, "case": CASES[case][1]}, folder / "case.pt")
    encoder.normalize = False  # the waveforms are normalised already
    with torch.no_grad():
        output = model.eval()(waveforms).last_hidden_state
        model.set_active(*beside)
        return output, model(waveforms).last_hidden_state


def prepare(folder: Path, family: str, style: str, case: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Our output with a random adapter and without; see :func:`hand_over`."""
    model = small_model(family, style)
    model.add_adapter("a", bottleneck(case))
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.adapters["a"].parameters():
            parameter.normal_(std=0.2)
    return hand_over(folder, model, weights_of(model, "a"), case)


def library_model(folder: Path, given: dict):
    """In the library's environment: the stock encoder with its interface, and the adapter config of one case."""
    import adapters
    from adapters import AdapterModelInterface
    from transformers import AutoModel

    model = AutoModel.from_pretrained(folder / "encoder")
    adapters.init(model, interface=AdapterModelInterface(**INTERFACE))
    name, settings = given["case"]
    return model.eval(), getattr(adapters, name)(**settings)


@torch.no_grad()
def write_output(model, given: dict, folder: Path) -> None:
    """In the library's environment: take our weights, by "place|layer|part", run, write the output."""
    import adapters

    modules = dict(model.named_modules())
    for key, (weight, bias) in given["weights"].items():
        place, index, part = key.split("|")
        (name,) = (n for n in modules if f"layers.{index}." in n and f"{place}.{part}" in n)
        linear = modules[name]
        linear = linear[0] if isinstance(linear, torch.nn.Sequential) else linear
        linear.weight.copy_(weight)
        if bias is not None:
            linear.bias.copy_(bias)
    output = model(given["waveforms"]).last_hidden_state
    torch.save({"output": output, "adapters": adapters.__version__}, folder / "output.pt")


def other_side(folder: Path) -> None:
    """One case in the library's environment."""
    given = torch.load(folder / "case.pt", weights_only=True)
    model, config = library_model(folder, given)
    model.add_adapter("a", config=config)
    model.set_active_adapters("a")
    write_output(model, given, folder)


def compare(script: str, description: str, prepare, other_side, cases: Sequence[str], effect: str) -> int:
    """The command line of a comparison: every case here, then in the other environment; 1 where the bar is missed.

    ``script`` is run there with ``--other-side``; ``effect`` names what stands beside the difference.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", type=Path, help="the interpreter of an environment with adapters 1.3.0")
    parser.add_argument("--other-side", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.other_side:
        for folder in sorted(arguments.other_side.iterdir()):
            other_side(folder)
        return 0
    if arguments.python is None or not arguments.python.exists():
        parser.error(f"--python {arguments.python}: give the interpreter of an environment with adapters 1.3.0")
    names = [f"{family} {style} {case}" for family, style, case in product(FAMILIES, STYLES, cases)]
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            (Path(folder) / name).mkdir()
        ours = {name: prepare(Path(folder) / name, *name.split()) for name in names}
        subprocess.run([str(arguments.python), script, "--other-side", folder], check=True)
        found = {name: torch.load(Path(folder) / name / "output.pt", weights_only=True) for name in names}
    print(f"{'case':32s} {'difference':>10s} {effect:>22s}")
    worst = 0.0
    for name, (output, other) in ours.items():
        difference = (output - found[name]["output"]).abs().max().item()
        apart = name.endswith(OTHER_FORMULA)
        note = "  another formula, not counted" if apart else ""
        print(f"{name:32s} {difference:10.1e} {(output - other).abs().max().item():22.1e}{note}")
        worst = worst if apart else max(worst, difference)
    print(f"adapters {found[name]['adapters']}: greatest difference {worst:.1e}, bar {BAR:.0e}")
    return int(worst > BAR)


if __name__ == "__main__":
    sys.exit(compare(__file__, __doc__, prepare, other_side, tuple(CASES), "effect of the adapter"))
