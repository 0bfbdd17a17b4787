"""A union-find with sides: what changes by one matrix, and what by the inverse of its transpose."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

from fxprune.analysis.freedom.regions import Freedom
from fxprune.rules.axes import Axis, Reason

__all__ = ["Coupled", "Coupling"]


@dataclass
class Coupled:
    """What is known of positions that change together; not frozen, since it grows as classes are joined.

    freedom, centred, reason: what the ops that touch them allow, and the op that allows least.
    sums: the ops that add up along the axis.  Each leaves centred rotations only, unless what it adds up is a
        product of two: an inner product (see `find`).
    weights: positions of weights.
    products: how often it is multiplied element by element.
    touched: it is in an op that is more than layout.
    trees: the axes of all the dimensions in it.
    """

    freedom: Freedom = Freedom.ANY
    centred: bool = False
    reason: Reason | None = None
    sums: list[Reason] = field(default_factory=list)
    weights: list[Hashable] = field(default_factory=list)
    products: int = 0
    touched: bool = False
    trees: set[Axis] = field(default_factory=set)

    def limit(self, freedom: Freedom, reason: Reason | None, *, centred: bool = False) -> None:
        """Allow no more than this."""
        self.touched = True
        self.centred |= centred
        if freedom < self.freedom:
            self.freedom, self.reason = freedom, reason

    def absorb(self, other: Coupled) -> None:
        """Take over what is known of another class."""
        if other.freedom < self.freedom:
            self.freedom, self.reason = other.freedom, other.reason
        self.centred |= other.centred
        self.touched |= other.touched
        self.products += other.products
        self.sums += other.sums
        self.weights += other.weights
        self.trees |= other.trees


class Coupling:
    """Positions, the classes that they are in, and the side of each in its class."""

    def __init__(self) -> None:
        self._parent: dict[Hashable, Hashable] = {}
        self._side: dict[Hashable, int] = {}  # relative to the parent
        self._known: dict[Hashable, Coupled] = {}

    def add(self, position: Hashable, tree: Axis) -> bool:
        """Add a position; says whether it is new."""
        if position in self._parent:
            return False
        self._parent[position], self._side[position] = position, 1
        self._known[position] = Coupled(trees={tree})
        return True

    def find(self, position: Hashable) -> tuple[Hashable, int]:
        """Return the representative of a position's class, and the side of the position in it."""
        path, side = [], 1
        while (parent := self._parent[position]) != position:
            path.append(position)
            position = parent
        for step in reversed(path):
            side *= self._side[step]
            self._parent[step], self._side[step] = position, side
        return position, side

    def of(self, position: Hashable) -> Coupled:
        """Return what is known of a position's class."""
        return self._known[self.find(position)[0]]

    def join(self, a: Hashable, b: Hashable, reason: Reason, *, opposite: bool = False) -> None:
        """Couple two positions: by one matrix, or one by the inverse of the other's transpose."""
        (root, side), (other, other_side) = self.find(a), self.find(b)
        relative = side * other_side * (-1 if opposite else 1)
        if root == other:
            if relative < 0:  # only a rotation is the inverse of its own transpose
                self._known[root].limit(Freedom.ROTATION, reason)
            return
        if len(self._known[root].weights) < len(self._known[other].weights):
            root, other = other, root
        self._parent[other], self._side[other] = root, relative
        self._known[root].absorb(self._known.pop(other))

    def classes(self) -> dict[Hashable, Coupled]:
        """Return every class by its representative."""
        return dict(self._known)
