"""Our AdapterFusion against that of the public `adapters` library, with the same weights.

    python benchmarks/fusion_parity.py --python /path/to/other/venv/bin/python

The other environment, the library's interface and the bar are those of ``adapters_library_parity.py``. Two adapters
with random weights are fused with random query, key and value matrices in every layer of a small random encoder.
Parallel adapters are left out: the library adds what it fuses to the sub-layer's input and drops the sub-layer's
output; ours adds it to that output, as with one adapter.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from adapters_library_parity import CASES, PLACES, compare, library_model, write_output

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
    """One case in the library's environment."""
    from adapters.composition import Fuse

    given = torch.load(folder / "case.pt", weights_only=True)
    model, config = library_model(folder, given)
    for name in MEMBERS:
        model.add_adapter(name, config=config)
    model.add_adapter_fusion(Fuse(*MEMBERS))
    model.set_active_adapters(Fuse(*MEMBERS))
    write_output(model, given, folder)


if __name__ == "__main__":
    sys.exit(compare(__file__, __doc__, prepare, other_side, FUSED, "fusion against average"))
