"""Our AdapterFusion against that of the public `adapters` library, with the same weights.

    python benchmarks/fusion_parity.py --python /path/to/other/venv/bin/python

The other environment, the library's interface and the bar are those of ``adapters_library_parity.py``. Two adapters
with random weights are fused with random query, key and value matrices in every layer of a small random encoder.
Parallel adapters are left out: the library adds what it fuses to the sub-layer's input and drops the sub-layer's
output; ours adds it to that output, as with one adapter.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from itertools import product
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from adapters_library_parity import BAR, CASES, FAMILIES, INTERFACE, OTHER_FORMULA, PLACES, STYLES

MEMBERS = ("a", "b")
FUSED = tuple(case for case in CASES if case != "parallel")


def prepare(folder: Path, family: str, style: str, case: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Write what the other side needs; returns our output (B, T, D) under the fusion and under their average."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from small_encoders import small_encoder

    from speech_adapters import Average, Fuse, SpeechAdapterModel
    from speech_adapters.adapters import Bottleneck

    encoder = small_encoder(family, style)
    model = SpeechAdapterModel(encoder)
    settings = {key: tuple(v) if isinstance(v, list) else v for key, v in CASES[case][0].items()}
    torch.manual_seed(1)
    for name in MEMBERS:
        model.add_adapter(name, Bottleneck(reduction_factor=8, **settings))
    fusion = model.fusions[model.add_fusion(Fuse(*MEMBERS))]
    with torch.no_grad():
        for parameter in [*model.adapters.parameters(), *fusion.parameters()]:
            parameter.normal_(std=0.2)
    waveforms = encoder.normalized(torch.randn(2, 6400))
    encoder.model.save_pretrained(folder / "encoder")
    weights = {}
    for name in MEMBERS:
        for site, layers in model.adapters[name].sites.items():
            for index, layer in layers.items():
                for part, linear in (("adapter_down.0", layer.down), ("adapter_up", layer.up)):
                    weights[f"{PLACES[site]}|{index}|adapters.{name}.{part}"] = linear.weight, linear.bias
    for place, layer in fusion.layers.items():
        site, _, index = place.rpartition("_")
        for part in ("query", "key", "value"):
            linear = getattr(layer, part)
            weights[f"{PLACES[site]}|{index}|adapter_fusion_layer.a,b.{part}"] = linear.weight, linear.bias
    weights = {key: tuple(None if t is None else t.detach() for t in pair) for key, pair in weights.items()}
    torch.save({"weights": weights, "waveforms": waveforms, "case": CASES[case][1]}, folder / "case.pt")
    encoder.normalize = False  # the waveforms are normalised already
    with torch.no_grad():
        output = model.eval()(waveforms).last_hidden_state
        model.set_active(Average(*MEMBERS))
        return output, model(waveforms).last_hidden_state


def other_side(folder: Path) -> None:
    """In the library's environment: load, build, run, write the output of one case."""
    import adapters
    from adapters import AdapterModelInterface
    from adapters.composition import Fuse
    from transformers import AutoModel

    given = torch.load(folder / "case.pt", weights_only=True)
    model = AutoModel.from_pretrained(folder / "encoder")
    adapters.init(model, interface=AdapterModelInterface(**INTERFACE))
    config, settings = given["case"]
    for name in MEMBERS:
        model.add_adapter(name, config=getattr(adapters, config)(**settings))
    model.add_adapter_fusion(Fuse(*MEMBERS))
    model.set_active_adapters(Fuse(*MEMBERS))
    modules = dict(model.named_modules())
    with torch.no_grad():
        for key, (weight, bias) in given["weights"].items():
            place, index, part = key.split("|")
            (name,) = (n for n in modules if f"layers.{index}." in n and f"{place}.{part}" in n)
            linear = modules[name]
            linear = linear[0] if isinstance(linear, torch.nn.Sequential) else linear
            linear.weight.copy_(weight)
            if bias is not None:
                linear.bias.copy_(bias)
        output = model.eval()(given["waveforms"]).last_hidden_state
    torch.save({"output": output, "adapters": adapters.__version__}, folder / "output.pt")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", type=Path, help="the interpreter of an environment with adapters 1.3.0")
    parser.add_argument("--other-side", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.other_side:
        for folder in sorted(arguments.other_side.iterdir()):
            other_side(folder)
        return 0
    if arguments.python is None or not arguments.python.exists():
        parser.error(f"--python {arguments.python}: give the interpreter of an environment with adapters 1.3.0")
    names = [f"{family} {style} {case}" for family, style, case in product(FAMILIES, STYLES, FUSED)]
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            (Path(folder) / name).mkdir()
        ours = {name: prepare(Path(folder) / name, *name.split()) for name in names}
        subprocess.run([str(arguments.python), __file__, "--other-side", folder], check=True)
        found = {name: torch.load(Path(folder) / name / "output.pt", weights_only=True) for name in names}
    print(f"{'case':32s} {'difference':>10s} {'fusion against average':>22s}")
    worst = 0.0
    for name, (output, average) in ours.items():
        difference = (output - found[name]["output"]).abs().max().item()
        apart = name.endswith(OTHER_FORMULA)
        note = "   another formula, not counted" if apart else ""
        print(f"{name:32s} {difference:10.1e} {(output - average).abs().max().item():22.1e}{note}")
        worst = worst if apart else max(worst, difference)
    print(f"adapters {found[name]['adapters']}: greatest difference {worst:.1e}, bar {BAR:.0e}")
    return int(worst > BAR)


if __name__ == "__main__":
    sys.exit(main())
