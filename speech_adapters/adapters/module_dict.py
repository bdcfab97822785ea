"""A ``ModuleDict`` that knows what it holds: looked-up members keep their class for the type checker."""

from __future__ import annotations

from collections.abc import ItemsView, Mapping, ValuesView
from typing import Generic, TypeVar, cast

from torch import nn

M = TypeVar("M", bound=nn.Module)


class ModuleDict(nn.ModuleDict, Generic[M]):
    """PyTorch's ``ModuleDict`` of modules of one class."""

    def __init__(self, modules: Mapping[str, M]) -> None:
        super().__init__(modules)

    def __getitem__(self, key: str) -> M:
        """The module of that name."""
        return cast(M, super().__getitem__(key))

    def items(self) -> ItemsView[str, M]:
        """Names and modules, in order."""
        return cast("ItemsView[str, M]", super().items())

    def values(self) -> ValuesView[M]:
        """Modules, in order."""
        return cast("ValuesView[M]", super().values())
