"""``model.save_adapter``, ``model.load_adapter``, and all other files that a model writes and reads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from speech_adapters.composition.blocks import Composition, Parallel
from speech_adapters.composition.registry import check_new
from speech_adapters.errors import CheckpointError, ConfigError
from speech_adapters.inference.modes import evaluating
from speech_adapters.model.members import Members
from speech_adapters.saving.adapters import read_adapter, save_adapter
from speech_adapters.saving.folding import folded_weights
from speech_adapters.saving.fusions import read_fusion, save_fusion
from speech_adapters.saving.heads import read_head, save_head
from speech_adapters.saving.onnx_graph import save_onnx, save_onnx_adapter
from speech_adapters.saving.peft_files import save_peft
from speech_adapters.saving.stock import save_stock


class Files(Members):
    """Saves, loads and exports of adapters, heads and fusions by name."""

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
