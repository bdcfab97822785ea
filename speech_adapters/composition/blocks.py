"""How adapters act together, as values: ``Stack("telephone", "asr")``, ``Fuse("studio", "telephone")``.

A composition names adapters and other compositions, prints as the Python that makes it, and is compared by value; it
holds no weights. What it does at each site of the encoder, ``d_n`` being what member n would add there:

    Stack      one after the other, each reading what the ones before made of the place
    Average    sum_n w_n d_n
    Fuse       sum_n a_n W_v d_n, a the attention of AdapterFusion at this site (``composition.fusion``)
    Route      sum_n g_n d_n, g one trained gate per utterance or frame (``composition.routing``)
    Parallel   each branch by itself, above one pass of the layers that no branch changes; one output per branch
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from speech_adapters.errors import ConfigError, counted


class Composition:
    """Base of all compositions; ``members`` are names of adapters and compositions."""

    kind: ClassVar[str]

    def __init__(self, *members: str | Composition) -> None:
        self.members = members
        if not members:
            raise ConfigError(f"{self!r}: give at least one adapter's name.")
        for member in members:
            if not isinstance(member, str | Composition):
                raise ConfigError(f"{self!r}: members are names of adapters and compositions, not {member!r}.")
            if isinstance(member, Parallel):
                raise ConfigError(
                    f"{self!r}: Parallel gives several outputs and cannot stand inside another composition."
                )
        self._check_names()

    def _check_names(self) -> None:
        names = [name for member in self.members for name in names_of(member)]
        if len(set(names)) < len(names):
            raise ConfigError(f"{self!r}: each name may occur once.")

    def options(self) -> dict[str, Any]:
        """What a composition has beside its members, where it is not the default."""
        return {}

    def to_dict(self) -> dict[str, Any]:
        """Plain values that JSON holds; :func:`composition_from_dict` reads them back."""
        members = [member if isinstance(member, str) else member.to_dict() for member in self.members]
        return {"kind": self.kind, "members": members, **self.options()}

    def __repr__(self) -> str:
        options = [f"{key}={value!r}" for key, value in self.options().items()]
        return f"{type(self).__name__}({', '.join([*map(repr, self.members), *options])})"

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and repr(self) == repr(other)

    def __hash__(self) -> int:
        return hash(repr(self))


class Stack(Composition):
    """Members in order, each on top of the ones before; the last that feeds the head does."""

    kind = "stack"


class Parallel(Composition):
    """Branches side by side: the model returns one output per branch, by the branch's name."""

    kind = "parallel"

    def _check_names(self) -> None:  # branches are independent: an adapter may stand in several
        if len(set(self.members)) < len(self.members):
            raise ConfigError(f"{self!r}: each branch may occur once.")


class Average(Composition):
    """The members' weighted sum at every site; ``weights`` sum to one, equal by default, and may be negative."""

    kind = "average"

    def __init__(self, *members: str | Composition, weights: Sequence[float] | None = None) -> None:
        self._weights = None if weights is None else tuple(float(weight) for weight in weights)
        super().__init__(*members)
        if self._weights is not None and len(self._weights) != len(members):
            raise ConfigError(
                f"{self!r}: {counted(len(self._weights), 'weight')} for {counted(len(members), 'member')}."
            )
        if abs(sum(self.weights) - 1) > 1e-6:
            raise ConfigError(f"{self!r}: the weights sum to {sum(self.weights):g}; they must sum to 1.")

    @property
    def weights(self) -> tuple[float, ...]:
        """One weight per member."""
        return self._weights if self._weights is not None else (1 / len(self.members),) * len(self.members)

    def options(self) -> dict[str, Any]:
        return {} if self._weights is None else {"weights": self._weights}


class TrainableComposition(Composition):
    """A composition with weights of its own, which the model keeps under ``name``; see ``model.add_fusion``."""

    def __init__(self, *members: str | Composition, name: str | None = None) -> None:
        self._name = name
        super().__init__(*members)

    @property
    def name(self) -> str:
        """The given name, or one made of the kind and the members' names."""
        return self._name or f"{self.kind}-" + "-".join(name for member in self.members for name in names_of(member))

    def options(self) -> dict[str, Any]:
        return {} if self._name is None else {"name": self._name}


class Fuse(TrainableComposition):
    """AdapterFusion of the members (Pfeiffer et al., EACL 2021)."""

    kind = "fuse"


class Route(TrainableComposition):
    """Mixture of experts: a gate reads the utterance, or each frame, and weighs the members."""

    kind = "route"


KINDS: dict[str, type[Composition]] = {cls.kind: cls for cls in (Stack, Parallel, Average, Fuse, Route)}


def names_of(composition: str | Composition) -> tuple[str, ...]:
    """The adapters in a composition, each once, in order."""
    if isinstance(composition, str):
        return (composition,)
    return tuple(dict.fromkeys(name for member in composition.members for name in names_of(member)))


def trained_names(composition: str | Composition) -> tuple[str, ...]:
    """The adapters that train with a composition: all but those under Fuse and Route, which are trained before."""
    if isinstance(composition, str):
        return (composition,)
    if isinstance(composition, TrainableComposition):
        return ()
    return tuple(dict.fromkeys(name for member in composition.members for name in trained_names(member)))


def trainable_in(composition: str | Composition) -> Iterator[TrainableComposition]:
    """The compositions with weights of their own in a composition, inner ones first."""
    if isinstance(composition, Composition):
        for member in composition.members:
            yield from trainable_in(member)
        if isinstance(composition, TrainableComposition):
            yield composition


def composition_from_dict(values: str | dict[str, Any]) -> str | Composition:
    """The composition that :meth:`Composition.to_dict` described."""
    if isinstance(values, str):
        return values
    values = dict(values)
    kind, members = values.pop("kind", None), values.pop("members", [])
    if kind not in KINDS:
        raise ConfigError(f"unknown composition {kind!r}; known: {', '.join(KINDS)}.")
    return KINDS[kind](*map(composition_from_dict, members), **values)
