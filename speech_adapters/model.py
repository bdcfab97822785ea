"""One frozen encoder with named adapters and named heads."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from speech_adapters import inputs as given
from speech_adapters.adapters.base import DEFAULT_LEARNING_RATE, AdapterConfig
from speech_adapters.adapters.hooks import AdapterPlan, Hooks, walk
from speech_adapters.adapters.presets import preset
from speech_adapters.composition import weight_averaging
from speech_adapters.composition.blocks import (
    Composition,
    Parallel,
    Stack,
    TrainableComposition,
    names_of,
    trainable_in,
    trained_names,
)
from speech_adapters.composition.fusion_base import CompositionConfig, TrainableHooks
from speech_adapters.composition.mixed_batch import (
    Choice,
    Inputs,
    Mixer,
    check_choices,
    check_width,
    mixed_forward,
    scored_by_sample,
)
from speech_adapters.composition.parallel import parallel_forward
from speech_adapters.composition.registry import Registry, check_new
from speech_adapters.data.audio import SAMPLE_RATE
from speech_adapters.data.windows import Windows
from speech_adapters.deprecation import renamed, renamed_attribute
from speech_adapters.encoders.encoder import Encoder
from speech_adapters.encoders.forward import Checkpointing, EncoderOutput, encode
from speech_adapters.encoders.loading import load_encoder
from speech_adapters.errors import CheckpointError, ConfigError, shown
from speech_adapters.heads.base import HeadConfig, HeadModule
from speech_adapters.inference.hearing import Frames
from speech_adapters.inference.methods import Inference
from speech_adapters.inference.modes import evaluating
from speech_adapters.inference.recordings import Audio, recordings_of
from speech_adapters.model_output import ModelOutput
from speech_adapters.saving.adapters import read_adapter, save_adapter
from speech_adapters.saving.finding import find_parts
from speech_adapters.saving.folding import fold, folded_weights
from speech_adapters.saving.fusions import read_fusion, save_fusion
from speech_adapters.saving.heads import Features, features_of, read_head, save_head
from speech_adapters.saving.onnx_graph import save_onnx, save_onnx_adapter
from speech_adapters.saving.peft_files import save_peft
from speech_adapters.saving.stock import save_stock
from speech_adapters.unlabelled.adaptation import Adaptation, Method, adapted

__all__ = ["ModelOutput", "SpeechAdapterModel"]


class SpeechAdapterModel(Inference, nn.Module):
    """A frozen encoder, adapters and heads by name. At any time one adapter or composition and one head are active.

    >>> model = SpeechAdapterModel.from_pretrained("tiny-wavlm")
    >>> model.add_adapter("telephone", "elp")
    >>> model.add_head("asr", CTCHead(vocabulary))
    >>> model.train_adapter("telephone", head="asr")
    >>> model(waveforms, lengths=lengths).logits

    What was trained is used by ``SpeechAdapterModel.from_adapter(folder)`` and the methods of
    :class:`~speech_adapters.inference.methods.Inference`.
    """

    accepts_loss_kwargs = False
    """Tells ``transformers.Trainer`` that the loss is a mean over utterances, not over tokens of several batches."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.adapters = nn.ModuleDict()
        self.heads = nn.ModuleDict()
        self.fusions = nn.ModuleDict()
        self.active: str | Composition | None = None
        self.skip_layers = 0
        self._to_train: tuple[str | Composition | None, str | None] | None = None  # of the last train_adapter
        self.folded_adapter: str | None = None
        self._unfolded: dict[str, Tensor] = {}
        self.active_head: str | None = None
        self.train_head = True
        self.mixer = Mixer()
        self.gradient_checkpointing: Checkpointing = False
        self.register_state_dict_post_hook(_apart)  # type: ignore[no-untyped-call]  # torch has no types for it

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, **options: Any) -> SpeechAdapterModel:
        """Load and freeze an encoder; arguments and errors of :func:`~speech_adapters.encoders.load_encoder`."""
        return cls(load_encoder(name_or_path, **options))

    @classmethod
    def from_adapter(
        cls,
        folder: str | Path,
        *,
        head: str | Path | None = None,
        encoder: str | Path | None = None,
        **options: Any,
    ) -> SpeechAdapterModel:
        """All that belongs to a saved adapter, ready for use: the base that it names, itself, and the head that was
        trained on it.

        Args:
            folder: of an adapter, of a head, of both, or of a run that holds one of each. The head is the one in the
                same folder, or in ``heads/`` beside ``adapters/``, whose file says that it was trained on this adapter
                as it is; of several, the one of the adapter's name. Without any, none is active.
            head: the folder of the head to take instead.
            encoder: the base, where its name in the file is not to be found here: a packaged name, folder or hub id.
            options: of :meth:`from_pretrained`: ``device``, ``dtype``, ``quantize``.

        Raises:
            CheckpointError: no such parts, damaged ones, or several that fit, which are named.
            ConfigError: the base cannot be loaded.
        """
        parts = find_parts(folder, head)
        if encoder is None:
            options.setdefault("revision", parts.base.revision_here)
        options.setdefault("target_lang", parts.base.language)
        try:
            model = cls.from_pretrained(parts.base.name if encoder is None else encoder, **options)
        except ConfigError as error:
            if encoder is not None:
                raise
            raise ConfigError(
                f"{folder}: its base is {parts.base.name!r}: {error} (Or name it: encoder=, --encoder.)"
            ) from error
        if parts.adapter is not None:
            model.load_adapter(parts.adapter)
        if parts.head is not None:
            model.load_head(parts.head)
        return model.eval()

    @property
    def registry(self) -> Registry:
        """The encoder and all that stands on it, by name."""
        return Registry(self.encoder, self.adapters, self.heads, self.fusions)

    # ------------------------------------------------------------------ adapters

    def add_adapter(self, name: str, config: str | AdapterConfig, task: str = "asr") -> None:
        """Add an adapter and make it the active one.

        Args:
            name: letters, digits, "_" and "-", the first a letter or a digit.
            config: a preset's name ("elp", "lora", "houlsby", ...) or a config (``EL(...)``, ``LoRA(rank=16)``).
            task: which task's published settings a preset takes (activation, learning rates).

        Raises:
            ConfigError: a name that is taken or not allowed, an unknown preset, settings that do not fit the encoder.
        """
        check_new(name, self.adapters, "adapter")
        self._check_unfolded()
        if isinstance(config, str):
            config = preset(config, task)
        if not isinstance(config, AdapterConfig):
            made = f"; write {config.__name__}()" if isinstance(config, type) else ""
            raise ConfigError(
                f"adapter {name!r}: give a preset's name or an adapter config, not {shown(config)}{made}."
            )
        module = config.build(self.encoder).to(self.device)
        module.attach(self.encoder, name)
        module.requires_grad_(False).eval()
        self.adapters[name] = module
        self.set_active(name)

    def delete_adapter(self, name: str) -> None:
        """Remove an adapter; the base is left as it was before the adapter came."""
        module = self.registry.adapter(name)
        self.registry.check_unused(name)
        if name == self.folded_adapter:
            before = self.active, self.skip_layers
            self.unfold_adapter()
            self.active, self.skip_layers = before
        if name in self.active_adapters:
            members = self.active.members if isinstance(self.active, Stack) else ()
            rest = [member for member in members if name not in names_of(member)]
            self.set_active(*rest, skip_layers=self.skip_layers if rest else 0)
        module.detach(self.encoder)
        self.mixer.clear()
        del self.adapters[name]

    def set_active(self, *members: str | Composition | None, skip_layers: int = 0) -> None:
        """Choose what acts: an adapter's name or a composition; several form a stack, none leaves the frozen base.

        Args:
            skip_layers: how many of the lowest layers go without their adapters, for speed (Rücklé et al.,
                "AdapterDrop", EMNLP 2021).
        """
        chosen = tuple(member for member in members if member is not None)
        composition = Stack(*chosen) if len(chosen) > 1 else next(iter(chosen), None)
        self.hooks(composition)
        self._check_beside_folded(() if composition is None else names_of(composition))
        if not 0 <= skip_layers <= self.encoder.num_layers:
            raise ConfigError(f"skip_layers={skip_layers}: the encoder has {self.encoder.num_layers} layers.")
        self.active, self.skip_layers = composition, skip_layers

    @property
    def active_adapters(self) -> tuple[str, ...]:
        """Names of the adapters in the active composition."""
        return () if self.active is None else names_of(self.active)

    @property
    def trained_adapters(self) -> tuple[str, ...]:
        """Names of the active adapters that train: those outside of Fuse and Route."""
        return () if self.active is None else trained_names(self.active)

    def hooks(self, composition: str | Composition | None) -> Hooks:
        """What a composition of this model's adapters does in one forward.

        Raises:
            ConfigError: an adapter or fusion that is not there, members that cannot be composed so.
        """
        return self.registry.hooks(composition)

    @property
    def feature_size(self) -> int:
        """Width of what a head reads under the active composition."""
        return self.hooks(self.active).output_size or self.encoder.output_size

    @property
    def feature_stride(self) -> int:
        """Samples from one frame of what a head reads to the next."""
        return self.frames(self.active).feature_stride

    def feature_lengths(self, samples: int) -> int:
        """How many frames a head reads of this many samples."""
        return self.frames(self.active).feature_lengths(samples)

    def frames(self, choice: str | Composition | None) -> Frames:
        """The frames that a head reads under an adapter or composition: the layers' where that hands on what it read
        from them, in place of the last hidden state."""
        return Frames(self.encoder, of_layers=self.hooks(choice).output_size is not None)

    @property
    def first_layer(self) -> int:
        """The highest layer whose cached input a forward may start from under the active adapters; -1: only the CNN's
        output, -2: not even that."""
        return self.encoder.num_layers if self.active is None else self.hooks(self.active).first_layer

    @property
    def read_states(self) -> Sequence[int] | None:
        """Hidden states that the active adapters read, where they change nothing in the encoder: given these and the
        last, it need not run. None where they do. State ``l`` is the input of layer ``l``."""
        return self.hooks(self.active).states

    def lowest_layer(self, choices: Sequence[Choice] | None = None) -> int:
        """:attr:`first_layer` under these adapters, one per sample, or under the active ones."""
        if choices is None:
            return self.first_layer
        hooks = (self.hooks(choice) for choice in dict.fromkeys(choices) if choice is not None)
        return min((one.first_layer for one in hooks), default=self.encoder.num_layers)

    def average_adapters(
        self, name: str, weights: Mapping[str, float], method: str = "linear", base: str | None = None, **options: Any
    ) -> None:
        """Make a new adapter out of the weights of others of the same configuration, and make it active.

        Args:
            weights: the adapters and their weights, such as ``{"a": 0.5, "b": 0.5}``; negative ones subtract.
            base: the adapter that they all started from: their changes are averaged, and added to it. By default the
                start of a fresh adapter, where that is not random.
            method, options: see :func:`speech_adapters.composition.weight_averaging.average`.

        Raises:
            ConfigError: adapters of different configurations, an unknown method or option.
        """
        members = {key: self.registry.adapter(key) for key in weights}
        if base is not None:
            weight_averaging.shared_config({**members, base: self.registry.adapter(base)})
            start = self.registry.adapter(base).tensors()
        else:
            start = next(iter(members.values())).config.fixed_start(self.encoder) if members else {}
        averaged = weight_averaging.average(members, weights, method, base=start, **options)
        self.add_adapter(name, averaged.config)
        self.registry.adapter(name).load_tensors(averaged.tensors)

    def fold_adapter(self, name: str) -> None:
        """Fold an adapter into the base's weights, in place and in all its layers: it then costs nothing at run time.

        No adapter is active afterwards. :meth:`unfold_adapter` puts the base's own weights back, bit for bit (they
        are kept, so the changed matrices take twice their memory).

        Raises:
            ConfigError: a method that a change of weights cannot stand for, a base in 8 or 4 bits, or an adapter that
                is folded in already.
        """
        module = self.registry.adapter(name)
        self._check_unfolded()
        weights = folded_weights(self.encoder, module)
        self.set_active(skip_layers=self.skip_layers)
        self._unfolded, self.folded_adapter = fold(self.encoder, weights), name

    def _check_beside_folded(self, names: Iterable[str]) -> None:
        """Raise a ConfigError for adapters that cannot act on a base into which one is folded: that one again, and
        copies of what it has changed."""
        for name in () if self.folded_adapter is None else names:
            if name == self.folded_adapter:
                raise ConfigError(f"adapter {name!r} is folded into the base and acts; call unfold_adapter first.")
            if self.registry.adapter(name).replaced():
                raise ConfigError(
                    f"adapter {name!r} puts copies in the place of parts of the base, into which "
                    f"{self.folded_adapter!r} is folded; call unfold_adapter first."
                )

    def unfold_adapter(self) -> None:
        """Take the folded adapter out of the base again and make it the active one."""
        if self.folded_adapter is None:
            raise ConfigError("no adapter is folded into the base; nothing to take out.")
        fold(self.encoder, self._unfolded)
        name, self._unfolded, self.folded_adapter = self.folded_adapter, {}, None
        self.set_active(name, skip_layers=self.skip_layers)

    # ------------------------------------------------------------------ fusions

    def add_fusion(self, composition: TrainableComposition, config: CompositionConfig | None = None) -> str:
        """Give ``Fuse(...)`` or ``Route(...)`` its weights, and make it the active composition; returns its name.

        Args:
            config: :class:`~speech_adapters.composition.FusionConfig` for Fuse, ``RouterConfig`` for Route.

        Raises:
            ConfigError: no such adapters, members that cannot be composed so, a name that is taken.
        """
        with self._precision():
            module = self.registry.build_fusion(composition, config)
        self.fusions[composition.name] = module.to(self.device).requires_grad_(False).eval()
        self.set_active(composition)
        return composition.name

    def delete_fusion(self, name: str) -> None:
        """Remove the weights of a Fuse or Route; nothing is active afterwards if it was."""
        composition = self.registry.fusion(name).composition
        self.registry.check_unused(composition)
        if composition in self.active_fusions:
            self.set_active()
        del self.fusions[name]

    @property
    def active_fusions(self) -> list[TrainableComposition]:
        """The active Fuse and Route, inner ones first."""
        return [] if self.active is None else list(trainable_in(self.active))

    # ------------------------------------------------------------------ heads

    def add_head(self, name: str, config: HeadConfig) -> None:
        """Add a head for the features of the active adapter, and make it the active head."""
        check_new(name, self.heads, "head")
        if not isinstance(config, HeadConfig):
            made = f"; write {config.__name__}(...)" if isinstance(config, type) else ""
            raise ConfigError(
                f"head {name!r}: give a head config such as CTCHead(vocabulary), not {shown(config)}{made}."
            )
        branches = self.active.members if isinstance(self.active, Parallel) else ()
        sizes = {self.hooks(branch).output_size or self.encoder.output_size for branch in branches}
        if len(sizes) > 1:
            widths = " and ".join(map(str, sorted(sizes)))
            raise ConfigError(
                f"head {name!r}: the branches of {self.active!r} give features of {widths}; add a head for each while "
                "it alone is active."
            )
        self._keep_head(name, config.build(self.feature_size))

    def delete_head(self, name: str) -> None:
        """Remove a head."""
        self.registry.head(name)
        del self.heads[name]
        self.active_head = None if self.active_head == name else self.active_head

    def set_head(self, name: str | None) -> None:
        """Choose the active head; None for none."""
        if name is not None:
            self.registry.head(name)
        self.active_head = name

    @property
    def head(self) -> HeadModule | None:
        """The active head."""
        return None if self.active_head is None else self.registry.head(self.active_head)

    def average_heads(self, name: str, weights: Mapping[str, float], method: str = "linear", **options: Any) -> None:
        """Make a new head out of the weights of others of the same configuration, and make it active."""
        check_new(name, self.heads, "head")
        members = {key: self.registry.head(key) for key in weights}
        averaged = weight_averaging.average(members, weights, method, **options)
        head = averaged.config.build(next(iter(members.values())).input_size)
        head.load_state_dict(averaged.tensors)
        self._keep_head(name, head)

    def _features(self) -> Features | None:
        """What a head reads under the active composition, above the adapter that is folded in."""
        acting = self.active
        if self.folded_adapter is not None and not isinstance(acting, Parallel):
            above = acting.members if isinstance(acting, Stack) else () if acting is None else (acting,)
            acting = Stack(self.folded_adapter, *above) if above else self.folded_adapter
        return features_of(self.encoder, acting, self.registry.adapters_by_name)

    def _keep_head(self, name: str, head: HeadModule) -> None:
        self.heads[name] = head.to(self.device).requires_grad_(False).eval()
        self.active_head = name

    # ------------------------------------------------------------------ files

    def save_adapter(self, name: str, folder: str | Path, **card: Any) -> Path:
        """Save an adapter with the identity of its base; ``card`` entries (metrics, data) stay in its description."""
        return save_adapter(folder, name, self.registry.adapter(name), self.encoder, card)

    def load_adapter(self, folder: str | Path, name: str | None = None) -> str:
        """Load a saved adapter, or a LoRA that ``peft`` made, and make it active; returns its name (the saved one, or
        the folder's, unless given).

        Raises:
            CheckpointError: a damaged file, or an adapter made on another base; a LoRA with what ours does not have.
        """
        saved = read_adapter(folder, self.encoder)
        name = name or saved.name
        self.add_adapter(name, saved.config)
        self.registry.adapter(name).load_tensors(saved.tensors)
        return name

    def save_head(self, name: str, folder: str | Path) -> Path:
        """Save a head: its config (vocabulary and normaliser included), its weights, and what it reads now."""
        return save_head(folder, name, self.registry.head(name), self._features())

    def load_head(self, folder: str | Path, name: str | None = None) -> str:
        """Load a saved head and make it active; returns its name.

        Warns of features that it was not trained on but may still be able to read.

        Raises:
            CheckpointError: a damaged file, another base, or adapters of other methods than it was trained with.
        """
        saved = read_head(folder)
        name = name or saved.name
        check_new(name, self.heads, "head")
        saved.check(self._features())
        self._keep_head(name, saved.build())
        return name

    def save_fusion(self, name: str, folder: str | Path, **card: Any) -> Path:
        """Save the weights of a Fuse or Route, which adapters they are of, and a checksum of each of those.

        The adapters and the head are parts of their own: save them too.
        """
        return save_fusion(folder, self.registry.fusion(name), self.encoder, *self.registry.tensors(), card)

    def load_fusion(self, folder: str | Path) -> str:
        """Load a saved Fuse or Route onto the adapters it was trained with, and make it active; returns its name.

        Raises:
            CheckpointError: a damaged file, another base, an adapter that is missing or has changed since.
        """
        before, skip_layers = self.active, self.skip_layers
        saved = read_fusion(folder, self.encoder, *self.registry.tensors())
        name = self.add_fusion(saved.composition, saved.config)
        try:
            saved.load_into(self.registry.fusion(name))
        except CheckpointError:
            self.delete_fusion(name)
            self.set_active(before, skip_layers=skip_layers)
            raise
        return name

    def save_folded(self, name: str | None, folder: str | Path, head: str | None = None) -> Path:
        """Save the base with an adapter folded in as a stock checkpoint, bare or under a head; returns the folder.

        ``transformers`` opens it without this package: bare with ``AutoModel``; a CTC head with ``AutoModelForCTC``,
        ``Wav2Vec2Processor`` and ``pipeline("automatic-speech-recognition", folder)``; a classification head with
        ``AutoModelForAudioClassification`` and ``pipeline("audio-classification", folder)``. Logits are those of this
        model, which stays as it is.

        Args:
            name: the adapter; None for the base alone.
            head: the head that goes along; None for none.

        Raises:
            ConfigError: as :meth:`fold_adapter`; a head that no stock class holds exactly; a folder that is taken.
        """
        self._check_unfolded()
        weights = {} if name is None else folded_weights(self.encoder, self.registry.adapter(name))
        return save_stock(self.encoder, weights, folder, None if head is None else self.registry.head(head))

    def save_peft(self, name: str, folder: str | Path, head: str) -> Path:
        """Save an adapter and a head for ``PeftModel.from_pretrained`` on the base under that head's stock class.

        The folder of :meth:`save_adapter` opens so on the bare base (``AutoModel``); on a ``*ForCTC`` model tensors
        have other names, and the head goes along. The tokenizer's files lie beside.

        Raises:
            ConfigError: a method that ``peft`` does not have, a head that no stock class holds, a taken folder.
        """
        return save_peft(self.encoder, self.registry.adapter(name), self.registry.head(head), folder)

    def save_onnx(
        self,
        name: str | Composition | None,
        folder: str | Path,
        head: str | None = None,
        *,
        slots: Sequence[str] | None = None,
        int8: bool = False,
    ) -> Path:
        """Save encoder, adapter and head as an ONNX graph of free batch and length; returns the new folder.

        onnxruntime runs it without this package, torch or transformers; a CTC graph opens in sherpa-onnx too
        (``OfflineRecognizer.from_omnilingual_asr_ctc``). LoRA and the head are slots, into which
        :meth:`save_onnx_adapter` writes others; any other adapter or composition is fixed in the graph.

        Args:
            name: the adapter or composition; None for the base.
            head: the head that goes along; None for the features (B, T, D).
            slots: projections that take LoRA, in every layer ("q_proj", ...); by default those that the adapter
                changes.
            int8: write ``model.int8.onnx`` too, the encoder's matrices in 8 bits.

        Raises:
            ConfigError: what has no ONNX form, with the reason; a folder that is taken; a package that is missing.
        """
        self._check_unfolded()
        hooks = self.hooks(name)
        adapter = self.registry.adapter(name) if isinstance(name, str) else None
        module = None if head is None else self.registry.head(head)
        if isinstance(name, Parallel):
            raise ConfigError(f"{name!r}: a graph has one output; export its branches one by one.")
        with evaluating(self):
            return save_onnx(self.encoder, hooks, adapter, folder, module, slots=slots, int8=int8)

    def save_onnx_adapter(self, name: str, file: str | Path, head: str | None = None) -> Path:
        """Save a LoRA adapter and its head for a graph of :meth:`save_onnx`; returns the file.

        Args:
            file: ``<folder of the graph>/<name>.onnx_adapter``.

        Raises:
            CheckpointError: no graph in that folder, or one of another base.
            ConfigError: an adapter or head for which the graph has no slots; a file that is there already.
        """
        adapter = self.registry.adapter(name)
        return save_onnx_adapter(self.encoder, adapter, file, None if head is None else self.registry.head(head))

    # ------------------------------------------------------------------ adaptation without labels

    def adapted(
        self,
        audio: Audio | Sequence[Audio],
        method: Method,
        *,
        windows: Windows | None = None,
        channel: int | str | None = None,
        sample_rate: int = SAMPLE_RATE,
    ) -> AbstractContextManager[Adaptation]:
        """This model adapted to recordings without their texts, for a while; afterwards every weight is what it was.

        >>> with model.adapted("call.wav", Entropy()):
        ...     transcript = model.transcribe("call.wav")

        Args:
            audio: a path, samples, or a list of them, to which it is adapted together.
            method: of :mod:`speech_adapters.unlabelled`.
            windows, channel, sample_rate: as for :meth:`transcribe`.

        Raises:
            ConfigError, AudioError, CheckpointError: see :func:`~speech_adapters.unlabelled.adaptation.adapted`.
        """
        files = recordings_of(audio, channel=channel, sample_rate=sample_rate)
        return adapted(self, [file[0] for file in files], method, windows)

    # ------------------------------------------------------------------ training

    def train_adapter(self, *names: str | Composition, head: str | None = None, train_head: bool = True) -> None:
        """Activate adapters and a head, and let exactly their parameters train; everything else needs no gradient.

        ``train_adapter(head="asr")`` trains the head alone on the frozen base; ``train_head=False`` keeps a head that
        several adapters share as it is. Adapters under Fuse and Route stay frozen.

        Raises:
            ConfigError: no such adapter, fusion or head; a head of another width; a Fuse or Route of one member, which
                has nothing to choose between.
        """
        self._check_unfolded()
        before = self.active, self.skip_layers, self.active_head
        try:
            self.set_active(*names)
            for fusion in self.registry.fusions_in(self.active):
                fusion.check_trainable()
            self.set_head(head if head is not None else self.active_head)
            self._check_widths()
        except ConfigError:
            self.active, self.skip_layers, self.active_head = before
            raise
        self.train_head = train_head
        self._to_train = self.active, self.active_head
        for parameter in self.parameters():
            parameter.requires_grad_(False)
        for parameters in self.parameter_groups().values():
            for parameter in parameters:
                parameter.requires_grad_(True)
        self.train()

    def train_fusion(
        self, composition: str | TrainableComposition, head: str | None = None, train_head: bool = True
    ) -> None:
        """The second stage: activate a fusion or router and let its parameters, and the head's, train.

        Its adapters stay frozen. Arguments: the composition or its name; see :meth:`train_adapter` for the others.
        """
        if isinstance(composition, str):
            composition = self.registry.fusion(composition).composition
        self.train_adapter(composition, head=head, train_head=train_head)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Parameters that train, by group ("e", "l", "lora", "fusion", "head", ...), under the active composition."""
        groups: dict[str, list[nn.Parameter]] = {}
        for name in self.trained_adapters:
            for group, parameters in self.registry.adapter(name).groups().items():
                if parameters:
                    groups.setdefault(group, []).extend(parameters)
        for module in self.registry.fusions_in(self.active):
            groups.setdefault(module.group, []).extend(module.parameters())
        if self.head is not None and self.train_head:
            groups["head"] = list(self.head.parameters())
        return groups

    def learning_rates(self, overrides: dict[str, float] | None = None) -> dict[str, float]:
        """Learning rate of each group of :meth:`parameter_groups`: override, else the adapter's own, else 1e-3."""
        groups = self.parameter_groups()
        rates = dict.fromkeys(groups, DEFAULT_LEARNING_RATE)
        for name in self.trained_adapters:
            rates.update({k: v for k, v in self.registry.adapter(name).learning_rates().items() if k in groups})
        for module in self.registry.fusions_in(self.active):
            if module.config.learning_rate is not None:
                rates[module.group] = module.config.learning_rate
        unknown = sorted(set(overrides or {}) - set(groups))
        if unknown:
            raise ConfigError(f"learning rate for unknown group {unknown[0]!r}; this model has {', '.join(groups)}.")
        return {**rates, **(overrides or {})}

    def train(self, mode: bool = True) -> SpeechAdapterModel:
        """Dropout works in active adapters and the active head only; the encoder stays in eval mode."""
        super().train(False)
        self.training = mode
        if mode and not any(parameter.requires_grad for parameter in self.parameters()):
            warnings.warn(
                "train(): nothing of this model is trainable; call train_adapter(name, head=...) first.", stacklevel=2
            )
        if mode:
            for name in self.trained_adapters:
                self.adapters[name].train()
            for module in self.registry.fusions_in(self.active):
                module.train()
            if self.head is not None:
                self.head.train()
        return self

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: Mapping[str, Any] | None = None, **options: Any
    ) -> None:
        """Recompute layers in the backward pass, for memory: torch's non-reentrant way, in every layer.

        Raises:
            ConfigError: another way that ``transformers`` knows.
        """
        asked = {**(gradient_checkpointing_kwargs or {}), **options}
        for key, value in asked.items():
            if (key, value) not in (("use_reentrant", False), ("every_n_layers", 1), ("offload", False)):
                raise ConfigError(f"gradient checkpointing: {key}={value!r} is not supported here; leave it out.")
        self.gradient_checkpointing = True

    def gradient_checkpointing_disable(self) -> None:
        """Keep all activations."""
        self.gradient_checkpointing = False

    def activation_checkpointing_enable(
        self, activation_checkpointing_kwargs: Mapping[str, Any] | None = None, **options: Any
    ) -> None:
        """The name of :meth:`gradient_checkpointing_enable` since transformers 5."""
        self.gradient_checkpointing_enable(activation_checkpointing_kwargs, **options)

    activation_checkpointing_disable = gradient_checkpointing_disable

    def check_trained(self) -> None:
        """Raise a ConfigError where something else has become active since :meth:`train_adapter`: a new adapter or
        head, which an optimizer would be given and would not move."""
        if self._to_train is None or self._to_train == (self.active, self.active_head):
            return
        adapters, head = self._to_train
        raise ConfigError(
            f"{self.active!r} under the head {self.active_head!r} is active, and train_adapter was called for "
            f"{adapters!r} under {head!r}; call it again with all that shall train."
        )

    def check_alive(self) -> None:
        """Raise if a trainable tensor has no gradient, a zero one or a non-finite one; call it after ``backward``.

        In a fresh adapter some gradients are zero in the first step by design (behind a zero-initialised projection):
        check after the second. A module's ``indifferent`` parameters may have a zero gradient always.
        """
        indifferent = {id(parameter) for module in self.modules() for parameter in getattr(module, "indifferent", ())}
        own = {id(parameter) for parameters in self.parameter_groups().values() for parameter in parameters}
        own -= indifferent
        dead = [
            f"{name} ({'no gradient' if p.grad is None else 'zero' if p.grad.isfinite().all() else 'not finite'})"
            for name, p in self.named_parameters()
            if id(p) in own and p.requires_grad and (p.grad is None or not p.grad.isfinite().all() or not p.grad.any())
        ]
        if dead:
            remedy = "check that the adapter is active and that nothing bypasses its place in the encoder"
            if self.skip_layers:
                remedy = f"skip_layers={self.skip_layers} leaves adapters out of the lowest layers; train without"
            raise RuntimeError(
                f"{len(dead)} trainable tensor(s) learn nothing: {', '.join(dead[:5])}. An adapter must be alive: "
                f"{remedy}."
            )

    # ------------------------------------------------------------------ forward

    def forward(
        self,
        waveforms: Tensor | None = None,
        lengths: Tensor | None = None,
        *,
        targets: Tensor | None = None,
        time_mask: Tensor | None = None,
        adapter: Sequence[Choice] | None = None,
        head: Sequence[str | None] | None = None,
        guide: Tensor | None = None,
        input_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        **cached: Any,
    ) -> ModelOutput | dict[str, ModelOutput]:
        """Waveforms (B, samples) at 16 kHz, lengths (B,) in samples -> :class:`ModelOutput`.

        Args:
            targets: what the active head's loss wants, e.g. (B, U) token ids padded with -100 for CTC, or
                lists of them.
            time_mask: (B, T) boolean frames to hide (SpecAugment).
            adapter: one choice per sample, in place of the active composition: names, ``Stack(...)``, None for the
                base.
            head: one head per sample, or one per branch of Parallel, in place of the active head; None for none.
            guide: (B,) the member of a Fuse or Route that belongs to each utterance, -100 for unknown: its guide loss.
            input_values, attention_mask, labels: ``transformers``' names: of waveforms, of lengths as a mask
                (B, samples), of targets.
            cached: ``cnn_output``, ``hidden`` with ``start_layer``, ``hidden_states`` or ``last_hidden_state``, and
                ``frames``, in place of waveforms; see :func:`~speech_adapters.encoders.encode`.

        Under ``Parallel`` the result is a dict of outputs by branch.

        A half-precision encoder (``dtype=torch.bfloat16``) runs under autocast: adapters and heads stay in float32.

        Raises:
            AudioError: an utterance shorter than the encoder's receptive field; lengths that do not fit the waveforms.
            ConfigError: a head of another width than the features, targets that the head does not have, or a start
                above a layer that an adapter changes.
        """
        waveforms = given.either("waveforms", waveforms, "input_values", input_values)
        lengths = given.either("lengths", lengths, "attention_mask", attention_mask)
        lengths = lengths if attention_mask is None else given.lengths_of(attention_mask)
        targets = given.either("targets", targets, "labels", labels)
        given.check_names(cached, ARGUMENTS)
        for name, remedy in (("plan", "set_active"), ("gradient_checkpointing", "gradient_checkpointing_enable()")):
            if name in cached:
                raise ConfigError(f"{name}: not an argument of forward; set it on the model, with {remedy}.")
        if waveforms is not None:
            waveforms, lengths = given.audio(waveforms, lengths, self.device, self.encoder.receptive_field)
        if targets is not None and self.head is None and head is None:
            raise ConfigError("targets were given but no head is active; call set_head or add_head.")
        inputs = {"waveforms": waveforms, "lengths": lengths, "time_mask": time_mask, **cached}
        with self._precision():
            if adapter is not None:
                return self._mixed(inputs, adapter, head, targets)
            if isinstance(self.active, Parallel):
                return self._parallel(self.active, inputs, head, targets)
            if head is not None:
                raise ConfigError("head=[...] goes with adapter=[...] or Parallel; choose one head with set_head.")
            return self._composed(inputs, targets, guide)

    def _composed(self, inputs: Inputs, targets: Tensor | None, guide: Tensor | None) -> ModelOutput:
        """The whole batch under the active composition and head."""
        self._check_widths()
        root = self.hooks(self.active)
        output, plan = self._run(root, inputs)
        result = _result(output, plan.read(self.encoder, output))
        _score(result, self.head, targets)
        fusions, result.pseudo_frames = [h for h in walk(root) if isinstance(h, TrainableHooks)], plan.before
        result.attention = {f"{h.name}.{site}": a for h in fusions for site, a in h.attention.items()}
        if result.loss is not None and self.training:
            for fusion in fusions:
                result.loss = result.loss + fusion.loss(guide, output.mask, plan.before)
            result.loss = self._penalized(result.loss, self.trained_adapters)
        return result

    def _mixed(
        self,
        inputs: Inputs,
        choices: Sequence[Choice],
        heads: Sequence[str | None] | None,
        targets: Tensor | None,
    ) -> ModelOutput:
        """Each sample under an adapter, and under a head, of its own."""
        if heads is not None:
            check_choices("head", heads, inputs)
            if targets is not None:
                raise ConfigError(
                    "targets go with one head for the batch; with head=[...] score each sample's logits."
                )
        self._check_beside_folded(name for choice in choices if choice is not None for name in names_of(choice))
        output, rows = mixed_forward(self._run, self.mixer, self.registry, inputs, choices)
        result = _result(output, torch.stack(rows) if len({row.shape[-1] for row in rows}) == 1 else rows)
        if heads is not None:
            scored = scored_by_sample(self.registry, heads, choices, rows, result.frame_lengths)
            result.logits, result.embedding = scored
        elif self.active_head is not None:
            for choice, row in zip(choices, rows, strict=True):
                check_width(self.registry, self.active_head, choice, row)
            _score(result, self.head, targets)
        if result.loss is not None and self.training:
            chosen = dict.fromkeys(name for choice in choices if choice is not None for name in names_of(choice))
            trained = [n for n in chosen if any(p.requires_grad for p in self.registry.adapter(n).parameters())]
            result.loss = self._penalized(result.loss, trained)
        return result

    def _penalized(self, loss: Tensor, names: Iterable[str]) -> Tensor:
        """The loss with what the methods of these adapters add to it."""
        for name in names:
            if (penalty := self.registry.adapter(name).penalty()) is not None:
                loss = loss + penalty
        return loss

    def _parallel(
        self, parallel: Parallel, inputs: Inputs, heads: Sequence[str | None] | None, targets: Tensor | None
    ) -> dict[str, ModelOutput]:
        """The batch once per branch."""
        if heads is not None and (isinstance(heads, str) or len(heads) != len(parallel.members)):
            raise ConfigError(f"head={heads!r}: give one head for each branch of {parallel!r}.")
        if targets is not None:
            raise ConfigError(
                f"{parallel!r}: targets belong to one output; score the branches' logits, or train one by one."
            )
        heads = [self.active_head] * len(parallel.members) if heads is None else heads
        branches = [self.hooks(member) for member in parallel.members]
        outputs = parallel_forward(self._run, self.encoder, branches, inputs)
        results = {}
        for member, head, (output, features) in zip(parallel.members, heads, outputs, strict=True):
            result = _result(output, features)
            if head is not None:
                check_width(self.registry, head, member, features)
                _score(result, self.registry.head(head), None)
            results[member if isinstance(member, str) else repr(member)] = result
        return results

    def _run(self, root: Hooks, inputs: Inputs) -> tuple[EncoderOutput, AdapterPlan]:
        """The encoder under hooks; ``frame_lengths`` are given even where nothing is padded."""
        self._check_start(root, inputs)
        plan = AdapterPlan(root, self.skip_layers)
        checkpointing = self.training and self.gradient_checkpointing
        output = self.encoder(**inputs, plan=plan, gradient_checkpointing=checkpointing)
        if output.frame_lengths is None:
            last = output.last_hidden_state
            states = output.hidden_states[-1] if output.hidden_states else last
            output.frame_lengths = torch.full((len(states),), states.shape[1], device=states.device)
            output.output_lengths = torch.full((len(last),), last.shape[1], device=last.device)
        return output, plan

    # ------------------------------------------------------------------ what it is

    @property
    def device(self) -> torch.device:
        """Where the encoder is."""
        return self.encoder.device

    @property
    def config(self) -> Any:
        """The encoder's ``transformers`` configuration."""
        return self.encoder.config

    def count_parameters(self) -> dict[str, float]:
        """``trainable`` (active adapters and head), ``total`` (of all that a forward uses) and ``percent``."""
        trainable = sum(p.numel() for group in self.parameter_groups().values() for p in group)
        adapters = [self.registry.adapter(name) for name in self.active_adapters]
        added = sum(_size(adapter) - adapter.replaced() for adapter in adapters)
        added += sum(_size(module) for module in self.registry.fusions_in(self.active))
        total = self.encoder.num_parameters + added + (0 if self.head is None else _size(self.head))
        return {"trainable": trainable, "total": total, "percent": 100 * trainable / total}

    def __repr__(self) -> str:
        registry, lines = self.registry, [f"SpeechAdapterModel on {self.encoder!r}"]
        for name in self.adapters:
            adapter, mark = registry.adapter(name), "*" if name in self.active_adapters else " "
            lines.append(f" {mark} adapter {name!r}: {_size(adapter):,} parameters")
            lines += [f"     {line}" for line in adapter.describe()]
        for name in self.fusions:
            fusion = registry.fusion(name)
            mark = "*" if fusion.composition in self.active_fusions else " "
            lines.append(f" {mark} {fusion.composition!r}: {_size(fusion):,} parameters")
            lines += [f"     {line}" for line in fusion.describe()]
        for name in self.heads:
            head, mark = registry.head(name), "*" if name == self.active_head else " "
            lines.append(f" {mark} head {name!r}: {_size(head):,} parameters, reads {head.input_size}")
        if isinstance(self.active, Composition):
            lines.append(f"   active: {self.active!r}")
        active = self.count_parameters()
        lines.append("   active: {trainable:,} trainable of {total:,} ({percent:.2f} %)".format(**active))
        return "\n".join(lines)

    # ------------------------------------------------------------------ inner

    def _precision(self) -> AbstractContextManager[Any]:
        dtype = self.encoder.model.dtype
        return torch.autocast(self.device.type, dtype) if dtype.itemsize == 2 else nullcontext()

    def _check_start(self, root: Hooks, inputs: Inputs) -> None:
        first = root.first_layer
        hidden, start = inputs.get("hidden"), inputs.get("start_layer", 0)
        lowest = (name for name in self.active_adapters if self.registry.adapter(name).first_layer == first)
        name = next(lowest, None)
        who = repr(self.active) if name is None else f"adapter {name!r}"
        if first < -1 and (hidden is not None or inputs.get("cnn_output") is not None):
            raise ConfigError(f"{who} acts inside the CNN; start from waveforms.")
        states, total = inputs.get("hidden_states"), self.encoder.num_layers
        if states is not None or inputs.get("last_hidden_state") is not None:
            if root.states is None:
                raise ConfigError(f"{who} changes layers, which hidden states alone do not run; start below them.")
            lowest_state = total + 1 - len(states or ())
            if lacking := [state for state in root.states if state < lowest_state]:
                raise ConfigError(
                    f"{who} reads the input of layer {lacking[0]}, which is not among the hidden states given."
                )
        if hidden is not None and start > first:
            where = "before the layers; start" if first < 0 else f"from layer {first} on; start there, below, or"
            raise ConfigError(f"start_layer={start}: {who} acts {where} from cnn_output.")

    def _check_widths(self) -> None:
        if isinstance(self.active, Parallel):  # each branch by itself
            return
        if self.head is not None and self.head.input_size != self.feature_size:
            raise ConfigError(
                f"head {self.active_head!r} reads features of {self.head.input_size}, but the active adapters "
                f"{list(self.active_adapters)} give {self.feature_size}; add a head while the adapter is active."
            )

    def _check_unfolded(self) -> None:
        if self.folded_adapter is not None:
            raise ConfigError(f"adapter {self.folded_adapter!r} is folded into the base; call unfold_adapter first.")

    # ------------------------------------------------------------------ old names

    merge_adapter = renamed("merge_adapter", "fold_adapter")
    unmerge_adapter = renamed("unmerge_adapter", "unfold_adapter")
    merged_adapter = renamed_attribute("merged_adapter", "folded_adapter")
    save_merged = renamed("save_merged", "save_folded")
    merge_adapters = renamed("merge_adapters", "average_adapters")
    merge_heads = renamed("merge_heads", "average_heads")
    places = renamed("places", "hooks")


def _result(output: EncoderOutput, features: Tensor | list[Tensor]) -> ModelOutput:
    rows = features.unsqueeze(1) if isinstance(features, Tensor) else [row.unsqueeze(0) for row in features]
    lengths, mask = output.lengths_of(rows[0])
    assert lengths is not None and output.frame_lengths is not None
    return ModelOutput(
        output.last_hidden_state,
        output.hidden_states,
        features,
        lengths,
        mask,
        cnn_output=output.cnn_output,
        hidden_lengths=output.frame_lengths,
    )


def _score(result: ModelOutput, head: HeadModule | None, targets: Tensor | None) -> None:
    """Fill in the head's logits, and its loss where there are targets."""
    if head is not None:
        scored = head(result.features, result.frame_lengths)
        result.logits, result.embedding = scored.logits, getattr(scored, "embedding", None)
        if targets is not None:
            result.loss = head.loss(scored, given.targets_for(targets, scored, head))


def _apart(module: nn.Module, tensors: dict[str, Any], prefix: str, metadata: dict[str, Any]) -> None:
    """Safetensors can write a state dict: what two names share (an adapter's LoRA matrices stand in the base's
    projections too) becomes a tensor for each, and all are contiguous."""
    seen: set[int] = set()
    for name, tensor in tensors.items():
        if isinstance(tensor, Tensor) and tensor.numel():
            shared = tensor.data_ptr() in seen
            seen.add(tensor.data_ptr())
            tensors[name] = tensor.clone().contiguous() if shared else tensor.contiguous()


def _size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


ARGUMENTS = (*inspect.signature(SpeechAdapterModel.forward).parameters, *inspect.signature(encode).parameters)
"""Names that a forward may be given."""
