"""How a call that stands in a user's code is made on pruned sizes, where it would come to something else.

Positions that code computes from a width (sines of frequencies that follow from it) are others for a smaller
one: those of the kept channels are among the original's.  Parts of one size may have become parts of several.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fxprune.graph.nests import Value

__all__ = ["WORDS", "FullWidth", "Made", "UnevenParts"]


@dataclass(frozen=True)
class FullWidth:
    """A call at the original's width, of whose result the kept elements are taken.

    It is called with the function that the code names, and returns the one to call in its place.

    Arguments and results are told by their places among the leaves of the nest that they lie in.

    widths: (place of a tensor, number of its dimensions, ((dimension, the original's size), ...)): it is read
        for its sizes alone.
    numbers: (place of a whole number, the original's).
    kept: (place of a tensor in the result, ((dimension, kept positions), ...)).
    """

    widths: tuple[tuple[int, int, tuple[tuple[int, int], ...]], ...] = ()
    numbers: tuple[tuple[int, int], ...] = ()
    kept: tuple[tuple[int, tuple[tuple[int, tuple[int, ...]], ...]], ...] = ()

    def __call__(self, function: Callable[..., Value]) -> Callable[..., Value]:
        return functools.partial(self._call, function)

    def _call(self, function: Callable[..., Value], *args: Value, **kwargs: Value) -> Value:
        leaves, nest = pytree.tree_flatten((args, kwargs))
        for place, ndim, sizes in self.widths:
            x, wide = leaves[place], dict(sizes)
            leaves[place] = x.new_zeros([wide.get(d, x.shape[d]) for d in range(ndim)])
        for place, number in self.numbers:
            leaves[place] = number
        args, kwargs = pytree.tree_unflatten(leaves, nest)
        results, nest = pytree.tree_flatten(function(*args, **kwargs))
        for place, dims in self.kept:
            for dim, positions in dims:
                results[place] = _taken(results[place], dim, positions)
        return pytree.tree_unflatten(results, nest)

    def __str__(self) -> str:
        sizes = [f"{len(positions)} channels" for _, dims in self.kept for _, positions in dims]
        return f"at full width, of which {', '.join(dict.fromkeys(sizes))} are kept"


def _taken(x: Tensor, dim: int, positions: tuple[int, ...]) -> Tensor:
    return torch.index_select(x, dim, torch.tensor(positions).to(x.device))


@dataclass(frozen=True)
class UnevenParts:
    """A call that cuts a tensor into parts of one size, which have become parts of these.

    As `FullWidth`, it is called with a function and returns the one to call in its place.
    """

    dim: int
    sizes: tuple[int, ...]

    def __call__(self, function: Callable[..., Value]) -> Callable[..., Value]:
        return functools.partial(self._call, function)

    def _call(self, function: Callable[..., Value], *args: Value, **kwargs: Value) -> Value:
        parts = torch.cat(tuple(function(*args, **kwargs)), self.dim)
        return torch.split(parts, list(self.sizes), self.dim)

    def __str__(self) -> str:
        return f"into parts of {', '.join(map(str, self.sizes))}"


Made = FullWidth | UnevenParts
WORDS: dict[type, str] = {FullWidth: "full_width", UnevenParts: "uneven"}  # for attributes that hold them
