"""Let chance fall on one side of every coin, so that code that asks it takes one way."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fxprune.graph.classes import subclass_of

__all__ = ["COINS", "coin_on", "tossing"]

# None: numbers are drawn as ever; else every draw from [0, 1) is the least, or the most.
COINS = (None, 0.0, 1.0 - 2**-24)


class _Coin:
    """Chance that falls on one side: the numbers that torch draws from 0 to 1, and Python.

    While a model is traced, a single number is a number and no node: code may branch on it.
    """

    def __init__(self, side: float) -> None:
        self.side, self.single = side, torch.tensor(side)

    @contextlib.contextmanager
    def tossed(self) -> Iterator[None]:
        drawn = torch.rand, random.random
        torch.rand, random.random = self._tensor, lambda: self.side
        try:
            yield
        finally:
            torch.rand, random.random = drawn

    def _tensor(self, *size: Any, generator: torch.Generator | None = None, **kwargs: Any) -> Tensor:
        size = kwargs.pop("size", size)
        sizes = tuple(size[0]) if len(size) == 1 and isinstance(size[0], (list, tuple)) else size
        return torch.full(sizes, self.side, **kwargs) if sizes else self.single


def coin_on(side: float | None) -> contextlib.AbstractContextManager[None]:
    """Let coins fall on one side meanwhile; None: on either."""
    return contextlib.nullcontext() if side is None else _Coin(side).tossed()


def tossing(cls: Any, side: float) -> Any:
    """Return a class whose code finds one side of every coin."""
    coin = _Coin(side)

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        with coin.tossed():
            return cls.forward(self, *args, **kwargs)

    forward.__wrapped__ = cls.forward  # type: ignore[attr-defined]
    return subclass_of(cls, {"forward": forward})
