"""Every method on every family and layer style keeps every promise."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from matrix import PROMISES, REFUSED, Bench, check_reduced_precision
from small_encoders import FAMILIES, OTHERS, STYLES
from small_models import METHODS, TARGETS, batch, parameters, small_model

from speech_adapters.errors import ConfigError
from speech_adapters.heads.ctc import CTCHead

#: Two encoders cover every family's code path and both styles; with the rest the matrix takes minutes.
QUICK = {("wavlm", "pre-norm"), ("hubert", "post-norm")}


#: Coverage is counted on the quick ones: the others run the same lines.
SLOW = (pytest.mark.slow, pytest.mark.no_cover)

BENCHES = [
    pytest.param((family, style), id=f"{family}-{style}", marks=() if (family, style) in QUICK else SLOW)
    for family, style in [*product(FAMILIES, STYLES), *OTHERS]
]


@pytest.fixture(scope="module", params=BENCHES)
def bench(request):
    return Bench(*request.param)


@pytest.mark.parametrize("promise", PROMISES)
@pytest.mark.parametrize("method", METHODS)
def test_promise(bench, method, promise):
    reason = REFUSED.get((bench.family, method))
    if reason is None:
        PROMISES[promise](bench, method)
    else:
        with pytest.raises(ConfigError, match=reason):
            PROMISES[promise](bench, method)


@pytest.mark.parametrize("family", [family for family, _ in OTHERS])
def test_few_methods_are_refused(family):
    assert sum(refused == family for refused, _ in REFUSED) <= 0.05 * len(METHODS)


@pytest.mark.parametrize("method", METHODS)
def test_trains_in_float32_on_a_half_precision_base(method):
    waveforms, lengths = batch()
    full = small_model("wavlm", "pre-norm", method)
    model = small_model("wavlm", "pre-norm")
    model.encoder.model.bfloat16()
    torch.manual_seed(2)
    model.add_adapter("a", METHODS[method])
    model.add_head("asr", CTCHead())
    model.train_adapter("a", head="asr")
    assert {p.dtype for p in parameters(model)} == {torch.float32}
    output = model(waveforms, lengths, targets=TARGETS)
    check_reduced_precision(model, output, full, waveforms, lengths)
