"""What a training costs: operations counted from shapes, energy from counters, and nothing below what trains."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch
from small_encoders import small_encoder
from small_models import METHODS, TARGETS, batch, small_model
from test_training import HEAD, QUIET, manifest  # noqa: F401  (a fixture)
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from speech_adapters.data.batches import SpeechDataset
from speech_adapters.model import SpeechAdapterModel
from speech_adapters.runs.folder import RunFolder
from speech_adapters.training import meters
from speech_adapters.training.frozen import compute_taps, frozen_part
from speech_adapters.training.meters import EnergyMeter, FlopCounter
from speech_adapters.training.settings import TrainingConfig
from speech_adapters.training.supervised import train


@pytest.mark.parametrize("style", ["pre-norm", "post-norm"])
@pytest.mark.parametrize("method", ["head-only", "l-frozen", "pissa-all", "last-2", "lora", "elp", "weighted-sum"])
def test_nothing_is_kept_for_the_backward_pass_below_what_trains(style, method):
    model = small_model(method=method, style=style, head=True)
    waveforms, lengths = batch()
    frozen = frozen_part(model)
    taps, frames = compute_taps(model.encoder, frozen.taps, waveforms, lengths)

    def kept(**inputs):
        """Shapes of what autograd saved, in order, and the output."""
        shapes = []

        def pack(tensor):
            shapes.append(tuple(tensor.shape))
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            torch.manual_seed(0)
            output = model(**inputs, targets=TARGETS)
        return shapes, output

    whole, output = kept(waveforms=waveforms, lengths=lengths)
    above, _ = kept(**frozen.inputs(taps, frames))
    assert whole == above, "the same is saved as in a run that starts where training begins"
    assert output.cnn_output is None or not output.cnn_output.requires_grad
    lowest = frozen.layer if frozen.kind in ("input", "states") else 0
    assert not any(state.requires_grad for state in output.hidden_states[: lowest + (frozen.kind != "cnn")])


def test_a_run_that_trains_more_keeps_more():
    """That what the test above compares can differ."""
    sizes = {}
    for method in ("pissa-all", "lora"):
        model, (waveforms, lengths) = small_model(method=method, head=True), batch()
        shapes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=shapes: s.append(t.numel()) or t, lambda t: t):
            model(waveforms, lengths, targets=TARGETS)
        sizes[method] = sum(shapes)
    assert sizes["pissa-all"] < 0.8 * sizes["lora"], "one layer of three, all of them"


class Alive(TorchDispatchMode):
    """Bytes that operations made and that are still held."""

    def __init__(self):
        super().__init__()
        self.made = {}

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        output = operation(*args, **(kwargs or {}))
        for tensor in output if isinstance(output, tuple | list) else [output]:
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self.made[storage.data_ptr()] = (StorageWeakRef(storage), storage.nbytes())
        return output

    @property
    def bytes(self):
        gc.collect()
        return sum(size for reference, size in self.made.values() if not reference.expired())


@pytest.mark.parametrize("method", ["lora", "elp"])
def test_selective_checkpointing_keeps_less_than_all_and_computes_less_than_whole_layers(method):
    model = small_model(method=method, head=True).train()
    waveforms = torch.randn(2, 32_000)
    kept, operations = {}, {}
    for model.gradient_checkpointing in (False, True, "selective"):
        with Alive() as alive:
            loss = model(waveforms, targets=TARGETS[:2]).loss
        kept[model.gradient_checkpointing] = alive.bytes
        with FlopCounter() as counter:
            loss.backward()
        operations[model.gradient_checkpointing] = counter.flops
        del loss
    assert kept[True] < kept["selective"] < 0.8 * kept[False]
    assert operations[False] < operations["selective"] < operations[True]


def test_operations_are_counted_from_shapes():
    linear, convolution = nn.Linear(8, 16), nn.Conv1d(4, 6, 3)
    with FlopCounter() as counter:
        linear(torch.randn(5, 8))
    assert counter.flops == 2 * 5 * 8 * 16
    with FlopCounter() as counter:
        linear(torch.randn(5, 8)).sum().backward()
    assert counter.flops == 2 * 2 * 5 * 8 * 16, "and the weight's gradient"
    with FlopCounter() as counter:
        convolution(torch.randn(2, 4, 10))
    assert counter.flops == 2 * 2 * 8 * 6 * 4 * 3


def test_a_training_counts_its_operations(tmp_path, manifest):  # noqa: F811
    counted = {}
    for method, updates in (("head-only", 4), ("lora", 4), ("lora", 8), ("full", 4)):
        torch.manual_seed(0)
        model = SpeechAdapterModel(small_encoder())
        model.add_adapter("a", METHODS[method])
        model.add_head("head", HEAD)
        model.train_adapter("a", head="head")
        run = RunFolder.create("test", root=tmp_path)
        result = train(model, SpeechDataset(manifest, HEAD.target), TrainingConfig(**QUIET, updates=updates), run)
        counted[method, updates] = result.flops
    assert counted["head-only", 4] < counted["lora", 4] < counted["full", 4]
    assert counted["lora", 8] == pytest.approx(2 * counted["lora", 4], rel=0.05)


def test_energy_is_what_the_counters_gained(tmp_path, monkeypatch):
    assert EnergyMeter().joules() is None or EnergyMeter().joules() >= 0
    for name, value in (("intel-rapl:0", 5_000_000), ("intel-rapl:0:1", 7), ("intel-rapl:1", 1_000_000)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "energy_uj").write_text(f"{value}\n")
        (tmp_path / name / "max_energy_range_uj").write_text("9000000\n")
    monkeypatch.setattr(meters, "POWERCAP", Path(tmp_path))
    meter = EnergyMeter()
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("7500000\n")
    assert meter.joules() == 2.5, "packages count, their parts are in them"
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("500000\n")
    assert meter.joules() == 4.5, "the counter began again at 9 J"
    assert meter.joules() == 4.5
