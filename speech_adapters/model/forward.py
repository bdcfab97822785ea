"""``model(waveforms)``: one composition for a batch, an adapter per sample, or several branches."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from speech_adapters.adapters.hooks import AdapterPlan, Hooks, walk
from speech_adapters.composition.blocks import Parallel, names_of
from speech_adapters.composition.fusion_base import TrainableHooks
from speech_adapters.composition.mixed_batch import (
    Choice,
    Inputs,
    check_choices,
    check_width,
    mixed_forward,
    scored_by_sample,
)
from speech_adapters.composition.parallel import parallel_forward
from speech_adapters.encoders.forward import EncoderOutput, encode
from speech_adapters.errors import ConfigError
from speech_adapters.heads.base import HeadModule
from speech_adapters.model import inputs as given
from speech_adapters.model.members import Members
from speech_adapters.model_output import ModelOutput


class Forward(Members):
    """The encoder under the active adapters, and the head above it."""

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
            assert output.frame_lengths is not None, "a run tells them"
            for fusion in fusions:
                result.loss = result.loss + fusion.loss(guide, output.frame_lengths, plan.before)
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


ARGUMENTS = (*inspect.signature(Forward.forward).parameters, *inspect.signature(encode).parameters)
"""Names that a forward may be given."""
