"""A family of encoders is one file: with a made-up one every kind of method works, and nothing else knows families."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from small_models import METHODS, TARGETS, batch, parameters, shake
from torch import nn

from speech_adapters.encoders import Encoder
from speech_adapters.encoders.families import FAMILIES, PARTS, Family, family_of
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


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_every_family_names_every_part(family):
    assert {*PARTS, "dropout", "intermediate_dropout", "output_dropout"} <= set(family.names)


def test_an_unknown_family_is_refused_with_those_that_are_known():
    with pytest.raises(ConfigError, match="model_type 'bert' is not supported; supported: wav2vec2, hubert"):
        family_of(SimpleNamespace(model_type="bert"))


def test_no_other_room_knows_what_a_family_is_called_inside():
    paths = re.compile(
        r"\b(encoder\.layers|feature_projection|feature_extractor\.|pos_conv_embed|conv_layers|masked_spec_embed"
        r"|rel_attn_embed|gru_rel|attention\.[qkvout]+_proj|feed_forward\.(intermediate|output)_|self_attn|\.fc[12])\b"
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
