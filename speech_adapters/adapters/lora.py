"""LoRA and its variants, through ``peft``.

    y = W x + (alpha / r) B A x            A: D_in -> r, B: r -> D_out, B starts at 0

``peft`` puts its layers in place of the chosen projections of the base; the encoder's attention calls the projections
as modules, so they train on WavLM too (on stock WavLM they train nothing). Files are ``peft``'s own: a saved adapter
loads with ``PeftModel.from_pretrained`` onto stock wav2vec 2.0 and HuBERT.

Parameters: ``r (D_in + D_out)`` a projection. Use it when the adapter shall cost nothing at run time: it folds into
the base. Sources: Hu et al., "LoRA" (ICLR 2022); rsLoRA: Kalajdzievski (2023); DoRA: Liu et al. (ICML 2024).
Defaults: r = alpha = 8 on queries and values, as in the `adapters` library; speech papers also use r = 16 on the
feed-forward (PEFT-SER).
"""

from __future__ import annotations

import copy
import gc
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, cast
from weakref import WeakKeyDictionary, WeakValueDictionary

import torch
from torch import Tensor, nn

from speech_adapters.adapters.base import AdapterModule
from speech_adapters.adapters.projections import ProjectionConfig, low_rank_blueprint, projection
from speech_adapters.encoders.encoder import Encoder
from speech_adapters.encoders.plan import Site
from speech_adapters.errors import ConfigError
from speech_adapters.ranges import Dropout, Finite, Size

if TYPE_CHECKING:
    from peft import LoraConfig
    from peft.tuners.lora import Linear


@dataclass(frozen=True, kw_only=True)
class LoRA(ProjectionConfig):
    """Low-rank updates of the chosen projections."""

    method: ClassVar[str] = "lora"
    group: ClassVar[str] = "lora"

    rank: Size = 8
    alpha: Finite = 8
    dropout: Dropout = 0.0
    variant: Literal["lora", "rslora", "dora"] = "lora"
    """Plain, rank-stabilised scale, or weight-decomposed."""

    def build(self, encoder: Encoder) -> LoRAModule:
        return LoRAModule(self, encoder)

    def blueprint(self, encoder: Encoder) -> dict[str, Tensor]:
        return low_rank_blueprint(self, encoder, self.rank, magnitude=self.variant == "dora")

    def fixed_start(self, encoder: Encoder) -> dict[str, Tensor]:
        """DoRA's magnitudes, the norms of W's rows, for which ``build`` has no layers yet: A is random and B zero."""
        if self.variant != "dora":
            return {}
        return {
            f"base_model.model.{encoder.part_name(index, target)}.lora_magnitude_vector": torch.linalg.norm(
                projection(encoder, index, target).weight.detach(), dim=1
            ).float()  # of the weights in their own precision, as peft takes it
            for index, target in self.chosen(encoder)
        }

    def peft_config(self, encoder: Encoder) -> LoraConfig:
        """The equivalent ``peft.LoraConfig``."""
        from peft import LoraConfig

        return LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,  # type: ignore[arg-type]  # peft says int and takes any number
            lora_dropout=self.dropout,
            target_modules=self.target_modules(encoder),
            use_rslora=self.variant == "rslora",
            use_dora=self.variant == "dora",
            base_model_name_or_path=encoder.name,
            revision=encoder.revision,
        )


_OWNERS: WeakKeyDictionary[nn.Module, WeakValueDictionary[str, LoRAModule]] = WeakKeyDictionary()
"""Stock model -> the LoRAs in it, by the names that ``peft`` knows them by."""


class LoRAModule(AdapterModule):
    """Holds the ``peft`` layers of one adapter; their parameters also stand in the base's module tree."""

    config: LoRA

    def __init__(self, config: LoRA, encoder: Encoder) -> None:
        super().__init__(config)
        self.chosen, self.targets = config.chosen(encoder), config.target_modules(encoder)
        self.first_layer = min(index for index, _ in self.chosen)
        self.name = ""
        self.layers: list[Linear] = []  # peft's layers, which hold every LoRA adapter of the model
        self.parts = nn.ModuleList()  # this adapter's own A, B (and magnitudes)

    def attach(self, encoder: Encoder, name: str) -> None:
        from peft import inject_adapter_in_model

        _ = encoder.fingerprint  # of the base as it is, before peft renames its tensors
        owners = _OWNERS.setdefault(encoder.model, WeakValueDictionary())
        if name in owners:
            gc.collect()  # the name is free where nobody holds that model any more
        if name in owners:
            raise ConfigError(
                f"LoRA {name!r}: another model has one of this name on the same encoder; choose another name, or give "
                "each model an encoder of its own (copy.deepcopy)."
            )
        others = [p for p in encoder.model.parameters() if p.requires_grad]  # of LoRAs that train, in modes of theirs
        training = [module for module in encoder.model.modules() if module.training]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # peft warns that a module was already prepared when a second one comes
            inject_adapter_in_model(self.config.peft_config(encoder), encoder.model, adapter_name=name)
        encoder.model.requires_grad_(False).eval()
        for parameter in others:
            parameter.requires_grad_(True)
        for module in training:
            module.training = True
        self.name = name
        owners[name] = self
        self.layers = [cast("Linear", encoder.model.get_submodule(target)) for target in self.targets]
        self.parts = nn.ModuleList(part for _, part in self._own_parts()).float()  # trained in full precision
        for layer in self.layers:  # peft's own forward stays out: the plan adds the update, whatever the composition
            layer._disable_adapters = True

    def _own_parts(self) -> Iterator[tuple[str, nn.Module]]:
        """This adapter's modules in ``peft``'s layers, with the names that ``peft`` gives them in files."""
        for target, layer in zip(self.targets, self.layers, strict=bool(self.layers)):  # none before it is attached
            for kind in dict.fromkeys(layer.adapter_layer_names):  # peft lists DoRA's magnitudes twice
                container = getattr(layer, kind)
                if isinstance(container, nn.ModuleDict) and self.name in container:
                    yield f"base_model.model.{target}.{kind}", container[self.name]

    def delta(self, name: str, index: int, site: Site) -> Tensor | None:
        if (index, name) not in self.chosen:
            return None
        layer = self.layers[self.chosen.index((index, name))]
        part = cast(nn.Linear, layer.lora_A[self.name])
        hidden = site.input.to(part.weight.dtype)
        if self.name in layer.lora_variant:
            variant = layer.lora_variant[self.name]
            return variant.forward(layer, active_adapter=self.name, x=hidden, result=site.output) - site.output
        return layer.lora_B[self.name](part(layer.lora_dropout[self.name](hidden))) * layer.scaling[self.name]

    def low_rank(self) -> dict[tuple[int, str], tuple[Tensor, Tensor]] | None:
        """A (r, D_in) and B (D_out, r) with the scale in it, by layer and target; None for DoRA, which also rescales
        the base's weights."""
        if self.config.variant == "dora":
            return None
        pairs = {}
        for place, layer in zip(self.chosen, self.layers, strict=True):
            a, b = (cast(nn.Linear, part[self.name]).weight.detach() for part in (layer.lora_A, layer.lora_B))
            pairs[place] = a, b * layer.scaling[self.name]
        return pairs

    def train(self, mode: bool = True) -> LoRAModule:
        for layer in self.layers:  # where peft keeps the dropout; DoRA asks the layer itself
            layer.lora_dropout[self.name].train(mode)
            layer.training = any(dropout.training for dropout in layer.lora_dropout.values())
        return super().train(mode)

    def detach(self, encoder: Encoder) -> None:
        for target, layer in zip(self.targets, self.layers, strict=True):
            trains = [(parameter, parameter.requires_grad) for parameter in layer.parameters()]
            with warnings.catch_warnings():  # peft makes another adapter its active one, and trainable; here neither
                warnings.simplefilter("ignore")
                layer.delete_adapter(self.name)
            for parameter, flag in trains:
                parameter.requires_grad_(flag)
            if not any(len(getattr(layer, kind)) for kind in layer.adapter_layer_names):
                parent, _, child = target.rpartition(".")
                setattr(encoder.model.get_submodule(parent), child, layer.base_layer)
        self.layers, self.parts = [], nn.ModuleList()
        if (owners := _OWNERS.get(encoder.model)) is not None:
            owners.pop(self.name, None)
        encoder.model.peft_config.pop(self.name)
        if not encoder.model.peft_config:
            del encoder.model.peft_config

    def folded_weights(self, encoder: Encoder) -> dict[str, Tensor]:
        folded = {}
        for target, layer in zip(self.targets, self.layers, strict=True):
            twin = copy.deepcopy(layer).float()
            twin.merge(safe_merge=True, adapter_names=[self.name])  # peft refuses with its reason where it cannot
            folded[f"{target}.weight"] = cast(nn.Linear, twin.base_layer).weight.detach()
        return folded

    def groups(self) -> dict[str, list[nn.Parameter]]:
        return {self.config.group: list(self.parts.parameters())}

    def tensors(self) -> dict[str, Tensor]:
        # DoRA's magnitude is saved by peft without the trailing ".weight".
        return {
            (name if "magnitude" in name else f"{name}.{key}"): tensor
            for name, part in self._own_parts()
            for key, tensor in part.state_dict().items()
        }

    def describe(self) -> list[str]:
        config = self.config
        scale = config.alpha / (config.rank**0.5 if config.variant == "rslora" else config.rank)
        where = f"{', '.join(config.targets)} ({len(self.targets)} projections)"
        return [f"lora: {config.variant} rank {config.rank}, scale {scale:g}, on {where}"]
