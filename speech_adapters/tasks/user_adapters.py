"""Adapters of single users, which grow from their corrections: nobody else's answers change by a bit.

A user who mends a transcript gives a label. A small adapter of that user alone, above what all share, learns all
corrections of the user's so far in a few updates of the one loop; the shared adapter, the head and the other users'
adapters stay frozen. Layout of the folder::

    users/
      anna/
        corrections.jsonl      a manifest: what was said in each recording that was corrected
        audio/1.flac ...       those recordings
        adapter/               what was learnt from them; opens like any adapter
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from speech_adapters.adapters.base import AdapterConfig
from speech_adapters.adapters.bottleneck import Bottleneck
from speech_adapters.composition.blocks import Composition, Parallel, Stack
from speech_adapters.composition.registry import NAME
from speech_adapters.data.audio import SAMPLE_RATE, audio_info, write_audio
from speech_adapters.data.batches import SpeechDataset
from speech_adapters.data.manifest import Manifest, Utterance
from speech_adapters.errors import ConfigError
from speech_adapters.heads.ctc import CTCHeadModule
from speech_adapters.inference.recordings import Audio, recordings_of
from speech_adapters.inference.transcripts import Transcript
from speech_adapters.locks import locked
from speech_adapters.model import SpeechAdapterModel
from speech_adapters.runs.folder import RunFolder
from speech_adapters.training.result import TrainingResult
from speech_adapters.training.settings import TrainingConfig
from speech_adapters.training.supervised import train

FEW_UPDATES = TrainingConfig(
    updates=10, schedule="constant", warmup=0.0, batch_seconds=60.0, save_minutes=None, trackers=("none",)
)
"""What a correction costs: ten updates, by at most a minute of corrections each."""


class UserAdapters:
    """Users' adapters on a model whose active adapters and head all share.

    >>> users = UserAdapters(model, "users")
    >>> users.correct("anna", "call.wav", "IT WAS REPUGNANT TO HIS LIBERAL NATURE")
    >>> users.transcribe("anna", "next.wav").text

    Args:
        folder: of all users; what lies there is used.
        adapter: of a user's first correction; it has to start at what is shared, as the zero-initialised methods do.
        training: of one correction.

    Raises:
        ConfigError: the active head is no CTC head, or a composition with several outputs is active.
    """

    def __init__(
        self,
        model: SpeechAdapterModel,
        folder: str | os.PathLike[str],
        adapter: AdapterConfig | None = None,
        training: TrainingConfig = FEW_UPDATES,
    ) -> None:
        if not isinstance(model.head, CTCHeadModule):
            raise ConfigError("UserAdapters: corrections are transcripts, so a CTC head must be active.")
        if isinstance(model.active, Parallel):
            raise ConfigError(f"UserAdapters: {model.active!r} has several outputs; choose one of its branches.")
        self.model, self.folder, self.training = model, Path(folder), training
        self.adapter = Bottleneck(size=16) if adapter is None else adapter
        self.shared, self.head = model.active, model.head

    def choice(self, user: str) -> str | Composition | None:
        """What acts for a user: for ``set_active``, or one of ``model(..., adapter=[...])``'s.

        A user without corrections has what all share.

        Raises:
            ConfigError: a name with other than letters, digits, ``_`` and ``-``.
            CheckpointError: a damaged file, or one made on another base.
        """
        name, folder = self._name(user), self.folder / user / "adapter"
        if name not in self.model.adapters and (folder / "adapter.json").exists():  # not before a first one is whole
            with self._as_shared():
                self.model.load_adapter(folder, name)
        return self._above(name) if name in self.model.adapters else self.shared

    def transcribe(self, user: str, audio: Audio, **options: Any) -> Transcript:
        """What is said, as this user's adapter hears it; options of ``model.transcribe``."""
        choice = self.choice(user)
        with self._as_shared():
            self.model.set_active(choice)
            return self.model.transcribe(audio, **options)

    def correct(
        self, user: str, audio: Audio, text: str, *, channel: int | str | None = None, sample_rate: int = SAMPLE_RATE
    ) -> TrainingResult:
        """Learn that this is said in a recording; it is kept, with the adapter, before this returns.

        Raises:
            AudioError: audio that is missing, damaged or empty.
            ManifestError, TextError: a text that is empty, too long for its audio, or outside the vocabulary.
        """
        folder, name = self.folder / user, self._name(user)
        ((recording, *_),) = recordings_of(audio, channel=channel, sample_rate=sample_rate)
        heard = torch.cat(list(recording.blocks()))
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / "corrections.jsonl"):
            choice = self.choice(user)
            corrections = self._add(folder, user, heard, text)
            try:
                with self._as_shared():
                    if choice == self.shared:
                        torch.manual_seed(self.training.seed)
                        self.model.add_adapter(name, self.adapter)
                    result = self._learn(name, corrections)
                    self.model.save_adapter(name, folder / "adapter", corrections=len(corrections), user=user)
            except BaseException:
                self.forget(user)  # what is half learnt; the last that was saved is read again
                raise
        return result

    def forget(self, user: str) -> None:
        """Take a user's adapter out of the model's memory; its files stay."""
        name = self._name(user)
        if name in self.model.adapters:
            self.model.delete_adapter(name)

    def _add(self, folder: Path, user: str, heard: torch.Tensor, text: str) -> Manifest:
        """Keep a correction; returns all of the user's."""
        file = folder / "corrections.jsonl"
        before = list(Manifest.read(file)) if file.exists() else []
        number = 1 + len(before)
        path = (folder / "audio" / f"{number}.flac").absolute()
        path.parent.mkdir(exist_ok=True)
        write_audio(path, heard, loud="scale")
        new = Utterance(f"{user}-{number}", path, audio_info(path).duration, text=text, speaker=user)
        try:
            self.head.config.check(Manifest([new], f"the correction of {user}"), self.model.encoder)
        except Exception:
            path.unlink()
            raise
        corrections = Manifest([*before, new], str(file))
        corrections.write(file)
        return corrections

    def _learn(self, name: str, corrections: Manifest) -> TrainingResult:
        model = self.model
        model.train_adapter(self._above(name), head=model.active_head, train_head=False)
        for other in model.active_adapters:
            if other != name:
                model.registry.adapter(other).requires_grad_(False).eval()
        dataset = SpeechDataset(corrections, self.head.config.target, **self.training.dataset_options)
        try:
            with (
                tempfile.TemporaryDirectory() as place,
                RunFolder.create("corrections", path=Path(place) / "run") as run,
            ):
                return train(model, dataset, self.training, run)
        finally:
            model.requires_grad_(False)
            model.train(False)

    @contextmanager
    def _as_shared(self) -> Iterator[None]:
        """What is active afterwards is what was before."""
        active, head, train_head = self.model.active, self.model.active_head, self.model.train_head
        try:
            yield
        finally:
            self.model.set_active(active)
            self.model.set_head(head)
            self.model.train_head = train_head

    def _above(self, name: str) -> str | Composition:
        shared = self.shared
        if shared is None:
            return name
        return Stack(*(shared.members if isinstance(shared, Stack) else (shared,)), name)

    def _name(self, user: str) -> str:
        if not NAME.fullmatch(user):
            raise ConfigError(f"user {user!r}: use letters, digits, '_' and '-'; it names a folder.")
        return f"user-{user}"
