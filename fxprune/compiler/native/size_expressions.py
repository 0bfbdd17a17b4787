"""Compare what two graphs compute of sizes: `x.shape[0] * heads`, however each of them spells it."""

from __future__ import annotations

import operator
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx

__all__ = ["Size", "SizeReader", "same_size", "value_of"]

_ARITHMETIC: dict[Any, Callable[..., Any]] = {
    f: f for f in (operator.add, operator.sub, operator.mul, operator.floordiv, operator.neg)
}
TRIALS = 3  # of other numbers in the place of each size: two expressions that agree on all are the same


@dataclass(frozen=True)
class Size:
    """A size of a tensor: the same number wherever it is read."""

    tensor: fx.Node
    dim: int


@dataclass(frozen=True)
class SizeReader:
    """Reads what a graph's nodes say of sizes, in terms of another graph's nodes.

    there: what stands for each of its nodes in the other, by name; None: it is that one.
    """

    there: Mapping[str, fx.Node] | None = None

    def other(self, node: fx.Node) -> fx.Node | None:
        return node if self.there is None else self.there.get(node.name)

    def read(self, value: Any) -> Any:
        """Return the size or sizes that a node reads off a tensor, else what stands for the node."""
        if not isinstance(value, fx.Node):
            return value
        first = value.args[0] if value.args else None
        if value.op not in ("call_function", "call_method") or not isinstance(first, fx.Node):
            return self.other(value)
        if value.target is operator.getitem and isinstance(value.args[1], (int, slice)):
            sizes = self.read(first)
            return sizes[value.args[1]] if isinstance(sizes, tuple) else self.other(value)
        tensor, asked = self.other(first), value.args[1:]
        known = tensor.meta.get("val") if tensor is not None else None
        if tensor is None or value.kwargs or not isinstance(known, Tensor):
            return self.other(value)
        sizes = tuple(Size(tensor, dim) for dim in range(known.ndim))
        if (value.target, asked) in ((getattr, ("shape",)), ("size", ())):
            return sizes
        if value.target == "size" and isinstance(asked[0], int):
            return sizes[asked[0]]
        return self.other(value)

    def is_size(self, node: fx.Node) -> bool:
        """Does a node give a size, a shape, or a whole number computed from others?"""
        return isinstance(self.read(node), (Size, tuple)) or self.is_computed(node)

    def is_computed(self, node: fx.Node) -> bool:
        """Does it compute a whole number from others?"""
        if node.target not in _ARITHMETIC:
            return False
        other = self.other(node)
        return other is None or type(value_of(other)) is int

    def evaluate(self, value: Any, trial: int) -> int | None:
        """Compute a whole number with other numbers in the place of sizes; None where it is none.

        They are multiples of the example's: what divides those divides these.
        """
        read = self.read(value)
        if type(read) is int:
            return read
        if isinstance(value, fx.Node) and value.target in _ARITHMETIC and not value.kwargs:
            operands = [self.evaluate(a, trial) for a in value.args]
            if None in operands or (value.target is operator.floordiv and operands[1] == 0):
                return None
            return int(_ARITHMETIC[value.target](*operands))
        known = value_of(read)
        return known * random.Random(f"{trial} {read}").randrange(1, 10**6) if type(known) is int else None


def value_of(read: Any) -> Any:
    """Return what a node gives for the example, or the number that a size is there."""
    if isinstance(read, Size):
        return read.tensor.meta["val"].shape[read.dim]
    return read.meta.get("val") if isinstance(read, fx.Node) else read


def same_size(got: Any, wanted: Any, pruned: SizeReader) -> bool:
    """Do a node of one graph and a node of the other compute the same from the same sizes?"""
    own = SizeReader()
    for trial in range(TRIALS):
        a, b = own.evaluate(got, trial), pruned.evaluate(wanted, trial)
        if a is None or a != b:
            return False
    return True
