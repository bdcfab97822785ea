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
from adapters_library_parity import (
    CASES,
    PLACES,
    bottleneck,
    compare,
    hand_over,
    library_model,
    small_model,
    weights_of,
    write_output,
)

MEMBERS = ("a", "b")
FUSED = tuple(case for case in CASES if case != "parallel")


def prepare(folder: Path, family: str, style: str, case: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Our output under a random fusion, and under its members' average; see :func:`hand_over`."""
    from speech_adapters import Average, Fuse

    model = small_model(family, style)
    torch.manual_seed(1)
    for name in MEMBERS:
        model.add_adapter(name, bottleneck(case))
    fusion = model.fusions[model.add_fusion(Fuse(*MEMBERS))]
    with torch.no_grad():
        for parameter in [*model.adapters.parameters(), *fusion.parameters()]:
            parameter.normal_(std=0.2)
    weights = weights_of(model, "a") | weights_of(model, "b")
    for place, layer in fusion.layers.items():
        site, _, index = place.rpartition("_")
        for part in ("query", "key", "value"):
            linear = getattr(layer, part)
            bias = None if linear.bias is None else linear.bias.detach()
            weights[f"{PLACES[site]}|{index}|adapter_fusion_layer.a,b.{part}"] = linear.weight.detach(), bias
    return hand_over(folder, model, weights, case, Average(*MEMBERS))


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
