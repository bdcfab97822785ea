"""The labelling loop: rounds of picks under a budget, each decision logged before it is acted on.

    learner = ActiveLearner(pool, config, folder)
    while (turn := learner.next_round(view)) is not None:      # view: what the last model says of the pool
        learner.label(labels of turn)                          # from a sheet, or from an oracle; None: skipped
        learner.report(score of a model trained on learner.labelled)

``decisions.jsonl`` in the folder holds every round's picks, strategy and seed, its labels and its score. A loop made
again on that folder stands where it stood: logged picks are never drawn again, and the random numbers of a round
follow from the seed and the round alone. What was skipped is not picked again, and costs nothing. Labels of a scored
round may come again, corrected: the models of later rounds learn from the corrected ones.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np

from speech_adapters.active.strategies import STRATEGIES, PoolView, agreement
from speech_adapters.data.manifest import Manifest, Utterance
from speech_adapters.errors import ConfigError
from speech_adapters.files import read_log, to_json, write_text
from speech_adapters.locks import hold
from speech_adapters.ranges import Count, Dropout, Finite, Positive, Range, Seed, Share, check_values

Labels = Mapping[str, Mapping[str, Any] | None]
"""What was said of utterances, by id: ``{"text": ...}``, or None of those that cannot be labelled."""

ROUNDING = 1e-9
"""Share of the budget by which a sum of many durations may be off."""


@dataclass(kw_only=True)
class LabellingConfig:
    """What may be labelled, in how many rounds, and how it is chosen."""

    strategy: str = "hybrid"
    """``random``, ``entropy``, ``margin``, ``least_confidence``, ``dropout``, ``committee``, ``k_center``, ``hybrid``
    (clusters, then uncertainty) or ``badge``."""
    budget: Positive = 200.0
    """Labels to spend in all, in ``unit``; what people skip costs none."""
    unit: Literal["utterances", "seconds"] = "utterances"
    """What a label costs: one each, or its seconds of audio."""
    initial: Annotated[float, Range(0, 1, above=True)] = 0.2
    """Share of the budget that the first round spends, before there is a model."""
    cold_start: Literal["random", "cluster", "k_center"] = "cluster"
    """How the first round picks, on embeddings of the frozen base."""
    rounds: Count = 5
    """Rounds in all, the first and the last polish among them; the budget between them is shared evenly. Fewer where
    a round's share is less than a label costs: each takes one label at least."""
    reserve: Dropout = 0.0
    """Share of the budget kept for the last polish: a final round on what the last model is least certain of. It is
    spent also where a stop rule ends the rounds before it."""
    stop_gain: Finite | None = None
    """Stop when a round raised the score by less than this a 100 labels (or 100 s); None never does."""
    stop_agreement: Share | None = None
    """Stop when entropy, margin and least confidence agree on the next picks to this share (Jaccard); None never."""
    seed: Seed = 0
    """Of everything drawn."""

    def __post_init__(self) -> None:
        if self.strategy not in STRATEGIES:
            raise ConfigError(f"strategy={self.strategy!r} is unknown; choose {', '.join(STRATEGIES)}.")
        check_values(self)
        if self.initial + self.reserve > 1:
            raise ConfigError(
                f"initial={self.initial}, reserve={self.reserve}: shares of the budget, at most 1 together."
            )
        if self.rounds < 1 + (self.initial + self.reserve < 1) + (self.reserve > 0):
            raise ConfigError(
                f"rounds={self.rounds}: too few for the first round, the rest of the budget and a reserve."
            )


@dataclass(frozen=True)
class Round:
    """What to label now: ``number`` from 0, ``stage`` ("start", "choose" or "polish") and the utterances, in order."""

    number: int
    stage: str
    strategy: str
    picks: tuple[Utterance, ...]


class ActiveLearner:
    """The state of one loop over ``pool``, kept in ``folder``.

    Raises:
        ConfigError: the folder holds a loop over another pool or with other settings.
    """

    def __init__(self, pool: Manifest, config: LabellingConfig, folder: str | os.PathLike[str]) -> None:
        if not len(pool):
            raise ConfigError(f"{pool.name}: the pool is empty; give utterances to choose from.")
        self.pool, self.config, self.folder = pool, config, Path(folder)
        self._utterances = {utterance.id: utterance for utterance in pool}
        self.log_file = self.folder / "decisions.jsonl"
        start = {"event": "start", "pool": pool_hash(pool), "config": to_json(config)}
        with contextlib.suppress(OSError):  # what is wrong with it, locking says
            self.folder.mkdir(parents=True, exist_ok=True)
        hold(self.folder)
        self.events = read_log(self.log_file) or [start]
        if (before := self.events[0]) != start:
            what = "pool" if before.get("pool") != start["pool"] else "configuration"
            raise ConfigError(
                f"{self.log_file}: begun with another {what}; go on with that one, or name a new folder."
            )
        write_text(self.log_file, "".join(json.dumps(event) + "\n" for event in self.events))  # without a torn end

    # ------------------------------------------------------------------ state

    def _of(self, event: str) -> list[dict[str, Any]]:
        return [entry for entry in self.events if entry["event"] == event]

    @property
    def picked(self) -> list[str]:
        """Ids of all picks so far, in the order in which they were chosen."""
        return [name for entry in self._of("picks") for name in entry["ids"]]

    @property
    def said(self) -> dict[str, dict[str, Any] | None]:
        """All that was said so far, as last corrected."""
        entries = [*self._of("labels"), *self._of("corrections")]
        return {name: said for entry in entries for name, said in entry["labels"].items()}

    @property
    def labelled(self) -> Manifest:
        """Everything labelled so far, with the labels that came back."""
        return self.with_labels(self.said, f"{self.pool.name}, labelled")

    def with_labels(self, labels: Labels, name: str) -> Manifest:
        """The utterances of the pool that ``labels`` has something of, with that, as a manifest called ``name``."""
        found = []
        for identity, said in labels.items():
            if said is None:
                continue
            known = {key: value for key, value in said.items() if key in Utterance.__dataclass_fields__}
            extra = {key: value for key, value in said.items() if key not in known}
            utterance = self._utterances[identity]
            found.append(replace(utterance, **known, extra={**utterance.extra, **extra}))
        return Manifest(found, name)

    @property
    def unlabelled(self) -> Manifest:
        """What may still be picked, in the pool's order."""
        taken = set(self.picked)
        return self.pool.filter(lambda utterance: utterance.id not in taken)

    @property
    def spent(self) -> float:
        """Budget used by all picks but the skipped ones."""
        skipped = {name for name, said in self.said.items() if said is None}
        return sum(self.cost(self._utterances[name]) for name in self.picked if name not in skipped)

    @property
    def scores(self) -> list[tuple[float, float]]:
        """(budget spent, score) after each round that was scored."""
        return [(entry["spent"], entry["score"]) for entry in self._of("score") if entry["score"] is not None]

    @property
    def rounds_done(self) -> int:
        """Rounds whose model is trained."""
        return len(self._of("score"))

    @property
    def rounds(self) -> tuple[Round, ...]:
        """All rounds drawn so far."""
        return tuple(map(self._round, self._of("picks")))

    @property
    def pending(self) -> Round | None:
        """A round whose picks wait for labels."""
        picks, labels = self._of("picks"), self._of("labels")
        return None if len(picks) == len(labels) else self._round(picks[-1])

    @property
    def waits_for_score(self) -> bool:
        """Labels came, but the model trained on them has not been reported."""
        return self.pending is None and len(self._of("labels")) > len(self._of("score"))

    @property
    def corrected(self) -> bool:
        """Whether labels were corrected after the last score: its model has learnt from others."""
        events = [entry["event"] for entry in self.events if entry["event"] in ("score", "corrections")]
        return events[-1:] == ["corrections"]

    def cost(self, utterance: Utterance) -> float:
        """One label, or its seconds."""
        return 1.0 if self.config.unit == "utterances" else utterance.duration

    # ------------------------------------------------------------------ steps

    def next_round(self, view: Callable[[], PoolView]) -> Round | None:
        """The round that waits for labels, else a new one; None when the budget is spent or a stop rule has ended it.

        Args:
            view: called for a new round alone; what the last model (before the first round: the frozen base) says of
                :attr:`unlabelled` and :attr:`labelled`.
        """
        if self.pending is not None:
            return self.pending
        if self.waits_for_score:
            raise ConfigError("next_round: report the score of the last round first.")
        number, config = len(self._of("picks")), self.config
        polished = any(entry["stage"] == "polish" for entry in self._of("picks"))
        shortest = min(map(self.cost, self.unlabelled), default=np.inf)
        left, slack = config.budget - self.spent, ROUNDING * config.budget
        ended = bool(self._of("stop")) and config.reserve == 0
        if polished or ended or number >= config.rounds or shortest > left + slack:
            return None
        seen = view()
        if number and not self._of("stop") and (reason := self._stop(seen)) is not None:
            self._append({"event": "stop", "round": number, "reason": reason})
            if config.reserve == 0:
                return None
        stopped, last_choice = bool(self._of("stop")), config.rounds - (2 if config.reserve > 0 else 1)
        to_choose = config.budget * (1 - config.reserve) - self.spent
        strategy: str
        if number == 0:
            stage, strategy, amount = "start", config.cold_start, config.initial * config.budget
        elif stopped or number > last_choice or shortest > to_choose + slack:
            stage, strategy = "polish", "least_confidence"
            amount = config.reserve * config.budget if stopped else left
        else:
            stage, strategy = "choose", config.strategy
            amount = to_choose / (last_choice - number + 1)
        order = STRATEGIES[strategy](seen, self._rng(number))
        picks = self._take(order, min(max(amount, shortest), left))
        entry = {
            "event": "picks",
            "round": number,
            "stage": stage,
            "strategy": strategy,
            "seed": [config.seed, number],
            "pool": len(self.unlabelled),
            "ids": [utterance.id for utterance in picks],
            "cost": sum(map(self.cost, picks)),
        }
        self._append(entry)
        return self._round(entry)

    def label(self, labels: Labels) -> set[str] | None:
        """Record what the annotator (or the oracle) said of a round's picks, one entry a pick.

        Those of an earlier round may come again, as they were (whoever stopped what follows gives the same sheet) or
        corrected.

        Returns: ids of what was said otherwise before; None for the round that waited.

        Raises:
            ConfigError: no round waits, the ids are not those of its picks, or corrections of a round whose model is
                being trained.
        """
        said, waiting = self.said, self.pending
        if any(set(labels) == set(entry["labels"]) for entry in self._of("labels")):
            changed = {name: label for name, label in labels.items() if label != said[name]}
            if changed and self.waits_for_score:
                raise ConfigError("label: a round has other labels already; report its score, then correct them.")
            if changed:
                self._append({"event": "corrections", "labels": changed})
            return set(changed)
        if waiting is None:
            raise ConfigError("label: no round waits for labels; call next_round first.")
        wanted = [utterance.id for utterance in waiting.picks]
        if set(labels) != set(wanted):
            wrong = sorted(set(labels) ^ set(wanted))
            raise ConfigError(f"label: {wrong[0]!r} is not in both the picks and the labels; label exactly the picks.")
        ordered = {name: labels[name] for name in wanted}
        self._append({"event": "labels", "round": waiting.number, "labels": ordered})
        return None

    def report(self, score: float | None, **facts: Any) -> None:
        """Record the score, higher is better, of the model trained on all labels so far; None without a test set."""
        if not self.waits_for_score:
            raise ConfigError("report: no labelled round waits for a score.")
        self._append({"event": "score", "round": self.rounds_done, "spent": self.spent, "score": score, **facts})

    # ------------------------------------------------------------------ inner

    def _take(self, order: Iterator[int], amount: float) -> list[Utterance]:
        """From the front of the order what fits into the amount."""
        pool = self.unlabelled
        shortest = min(map(self.cost, pool))
        picks: list[Utterance] = []
        left = amount + ROUNDING * self.config.budget
        for index in order:
            if left < shortest:
                break
            if self.cost(pool[index]) <= left:
                picks.append(pool[index])
                left -= self.cost(pool[index])
        return picks

    def _stop(self, view: PoolView) -> str | None:
        """Why the rounds should end, if they should."""
        config = self.config
        if config.stop_gain is not None and len(self.scores) > 1:
            (before, low), (now, high) = self.scores[-2:]
            gain = 100 * (high - low) / max(now - before, 1e-9)
            if now > before and gain < config.stop_gain:  # a round that was skipped as a whole says nothing
                return f"gain of {gain:.4f} a 100 {config.unit} is under {config.stop_gain}"
        if config.stop_agreement is not None:
            size = max(1, len(self._of("picks")[-1]["ids"]))
            shared = agreement(view, size)
            if shared >= config.stop_agreement:
                return f"acquisition functions agree on {shared:.2f} of the next {size} picks"
        return None

    def _rng(self, number: int) -> np.random.Generator:
        return np.random.default_rng((self.config.seed, number))

    def _round(self, entry: dict[str, Any]) -> Round:
        picks = tuple(self._utterances[name] for name in entry["ids"])
        return Round(entry["round"], entry["stage"], entry["strategy"], picks)

    def _append(self, event: dict[str, Any]) -> None:
        event = to_json(event)
        with self.log_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(event) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.events.append(event)


def pool_hash(pool: Manifest) -> str:
    """Of ids and durations: labels may be added to the manifest while the loop runs."""
    lines = [f"{utterance.id}\t{utterance.duration:.3f}" for utterance in pool]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
