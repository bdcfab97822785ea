"""A family of encoders is one file: with a made-up one every kind of method works, and nothing else knows families."""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from small_models import METHODS, TARGETS, batch, parameters, shake
from torch import nn

from speech_adapters.encoders import Encoder, families
from speech_adapters.encoders.families import FAMILIES, PARTS, Family, family_of, register_family
from speech_adapters.encoders.plan import Site
from speech_adapters.errors import ConfigError
from speech_adapters.heads.ctc import CTCHead
from speech_adapters.model import SpeechAdapterModel

#: One method of each kind of place: layers, norms, biases, projections, prefixes, front-end, pseudo frames, paths.
KINDS = ("lora-all", "ia3-all", "bitfit", "layer-norms", "houlsby", "elp", "chapter", "prefix", "full", "weighted-sum")


class Mixer(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.num_heads, self.dropout = 4, 0.0
        self.ask, self.offer, self.give, self.close = (nn.Linear(width, width) for _ in range(4))


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.mixer, self.before, self.between = Mixer(width), nn.LayerNorm(width), nn.LayerNorm(width)
        self.grow, self.bend, self.shrink = nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        self.rate = 0.0


class Toy(nn.Module):
    dtype = torch.float32

    def __init__(self, width=32, depth=2):
        super().__init__()
        self.config = SimpleNamespace(model_type="toy", hidden_size=width)
        self.ear, self.stack = nn.Conv1d(1, width, 400, 320), nn.ModuleList(Block(width) for _ in range(depth))
        self.top = nn.LayerNorm(width)


class ToyFamily(Family):
    model_type, title, layers = "toy", "Toy", "stack"
    names: ClassVar = {
        "attention": "mixer", "q_proj": "mixer.ask", "k_proj": "mixer.offer", "v_proj": "mixer.give",
        "out_proj": "mixer.close", "layer_norm": "before", "dropout": "rate", "intermediate_dense": "grow",
        "intermediate_act": "bend", "intermediate_dropout": "rate", "output_dense": "shrink",
        "output_dropout": "rate", "final_layer_norm": "between",
    }  # fmt: skip

    def pre_norm(self, config):
        return True

    def cnn_width(self, config):
        return config.hidden_size

    def intermediate_size(self, config):
        return 2 * config.hidden_size

    def layer_norm_eps(self, config):
        return 1e-5

    def frame_lengths(self, config, samples):
        return (samples - 400) // 320 + 1

    def receptive_field(self, config):
        return 400

    def stride(self, config):
        return 320

    def blocks(self, model):
        return [model.ear]

    def run_block(self, block, signal):
        return block(signal).tanh()

    def convolution(self, block):
        return block

    def front_end(self, model, waveforms, lengths, plan):
        signal = waveforms.unsqueeze(1)
        return plan.site("cnn", 0, Site(signal, self.run_block(model.ear, signal))).transpose(1, 2)

    def add_positions(self, model, extended, real):
        return extended.frames

    def final_norm(self, model):
        return model.top

    def published_normalize(self, config):
        return True

    def preprocessor(self, config, normalize):
        return {"do_normalize": normalize}

    def fault(self, config, shapes):
        return None


@pytest.fixture
def toy(monkeypatch):
    monkeypatch.setitem(FAMILIES, "toy", ToyFamily())
    torch.manual_seed(0)
    return Encoder(Toy(), "toy")


@pytest.mark.parametrize("method", KINDS)
def test_a_made_up_family_takes_every_kind_of_method(toy, method):
    waveforms, lengths = batch()
    model = SpeechAdapterModel(toy)
    torch.manual_seed(2)
    model.add_adapter("a", METHODS[method])
    model.add_head("asr", CTCHead())
    model.train_adapter("a", head="asr")
    optimizer = torch.optim.Adam(parameters(model), 1e-3)
    for _ in range(2):
        optimizer.zero_grad()
        model(waveforms, lengths, targets=TARGETS).loss.backward()
        optimizer.step()
    model.check_alive()
    shake(model)
    together, alone = model(waveforms, lengths), model(waveforms[1:, : lengths[1]])
    frames = int(lengths[1] - 400) // 320 + 1
    torch.testing.assert_close(together.features[1, :frames], alone.features[0], atol=1e-4, rtol=0)
    if method in ("lora-all", "ia3-all", "bitfit", "layer-norms", "full"):
        model.fold_adapter("a")
        torch.testing.assert_close(model(waveforms, lengths).features, together.features, atol=1e-4, rtol=0)


def test_parts_are_found_by_our_names_whatever_lies_around_them(toy):
    model = SpeechAdapterModel(toy)
    model.add_adapter("a", "lora")
    assert toy.part(1, "q_proj") is toy.model.stack[1].mixer.ask.base_layer
    assert toy.part(0, "output_dense") is toy.model.stack[0].shrink
    assert toy.part_name(1, "q_proj") == "stack.1.mixer.ask" and toy.layer_name(0) == "stack.0"
    assert [key for key in model.adapters["a"].tensors() if "stack.1.mixer.ask.lora_A" in key]


OWN = """
import json, sys, torch
from types import SimpleNamespace
from typing import ClassVar
from torch import nn
from speech_adapters import Family, SpeechAdapterModel, register_family
from speech_adapters.encoders.plan import Site

{classes}

class Own(ToyFamily):
    model_type = "own"

    def read_config(self, folder):
        return SimpleNamespace(**json.loads((folder / "config.json").read_text()))

    def load(self, folder, **options):
        model = Toy()
        model.config = self.read_config(folder)
        model.load_state_dict(torch.load(folder / "pytorch_model.bin"))
        return model, {{"missing_keys": []}}
"""

USE = """
import sys, torch
from own_family import Own
from speech_adapters import SpeechAdapterModel, register_family
register_family(Own())
folder, saved = sys.argv[1:]
model = SpeechAdapterModel.from_pretrained(folder)
waveforms = torch.linspace(-1, 1, 8000).sin()[None]
if saved == "no":
    model.add_adapter("a", "lora+l")
    model.train_adapter("a")
    with torch.no_grad():
        [p.add_(0.1) for group in model.parameter_groups().values() for p in group]
    model.save_adapter("a", f"{folder}/a")
else:
    model.load_adapter(f"{folder}/a")
print(model.eval()(waveforms).features.double().sum().item(), model.encoder.normalize)
"""


def test_a_family_outside_of_the_package_loads_trains_and_saves(tmp_path):
    classes = "\n\n".join(inspect.getsource(one) for one in (Mixer, Block, Toy, ToyFamily))
    (tmp_path / "own_family.py").write_text(OWN.format(classes=classes))
    (tmp_path / "use.py").write_text(USE)
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "own", "hidden_size": 32}))
    torch.manual_seed(0)
    torch.save(Toy().state_dict(), folder / "pytorch_model.bin")
    outputs = []
    for saved in ("no", "yes"):
        command = [sys.executable, str(tmp_path / "use.py"), str(folder), saved]
        outputs.append(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert outputs[0] == outputs[1] and outputs[0].endswith("True\n"), "the family's published normalisation"


def test_another_package_brings_a_family_along(monkeypatch):
    entry = SimpleNamespace(load=lambda: ToyFamily)
    found = {"toy": (entry,)}
    monkeypatch.setattr(families, "entry_points", lambda group, name: found.get(name, ()))
    monkeypatch.setattr(families, "FAMILIES", dict(FAMILIES))
    assert isinstance(family_of(SimpleNamespace(model_type="toy")), ToyFamily)
    with pytest.raises(ConfigError, match="model_type 'hubert' is HuBERT's; give your family one of its own"):
        register_family(type("Mine", (ToyFamily,), {"model_type": "hubert"})())


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_every_family_names_every_part(family):
    assert {*PARTS, "dropout", "intermediate_dropout", "output_dropout"} <= set(family.names)
    assert {*family.norms, *family.projections} <= set(family.names)


def test_an_unknown_family_is_refused_with_those_that_are_known():
    with pytest.raises(ConfigError, match="model_type 'bert' is not supported; supported: wav2vec2, hubert"):
        family_of(SimpleNamespace(model_type="bert"))


def test_no_other_room_knows_what_a_family_is_called_inside():
    paths = re.compile(
        r"\b(encoder\.layers|feature_projection|feature_extractor\.|pos_conv_embed|conv_layers|masked_spec_embed"
        r"|rel_attn_embed|gru_rel|ffn[12]|conv_module|linear_[qkv]|distance_embedding|attention\.[qkvout]+_proj"
        r"|feed_forward\.(intermediate|output)_|self_attn|\.fc[12])\b"
    )
    root = Path(__file__).parents[1]
    files = [path for folder in ("speech_adapters", "recipes") for path in (root / folder).rglob("*.py")]
    found = [
        f"{path.relative_to(root)}:{number}: {line.strip()}"
        for path in files
        if "encoders" not in path.parts
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if paths.search(line)
    ]
    assert not found, "\n".join(found)
