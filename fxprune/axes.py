"""The type system: what each dimension of a tensor *means*.

An axis is an `Atom`, a `Product` of axes (row-major, outermost first) or a `Sum` (a concatenation):

    residual stream        embed
    fused qkv rows         Product(3, heads, head_dim)
    merged patches         Product(4, embed)
    [q_bias | k_bias]      Sum(q, k)

Atoms are unification variables.  A `Solver` holds what is known about them: equal to which other
axis, or frozen (must stay whole) and why.  Rules only ever build terms; the solver alone unifies.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

__all__ = ["ONE", "Atom", "Axis", "AxisError", "Product", "Reason", "Solver", "Sum", "fixed"]

_serial = itertools.count()


class AxisError(Exception):
    """Two axes that must be equal differ in size: the rule that said so does not fit the call."""


@dataclass(frozen=True)
class Reason:
    """Why an atom must stay whole: in words, and the node that made it so."""

    text: str
    node: str | None = None
    where: str | None = None  # the user's source line, "file.py:12"

    def __str__(self) -> str:
        at = f" at {self.node}" if self.node else ""
        return f"{self.text}{at}" + (f" ({self.where})" if self.where else "")

    @property
    def brief(self) -> str:
        """The same, with the source file's name only."""
        return str(replace(self, where=self.where and os.path.basename(self.where)))


@dataclass(eq=False, frozen=True)
class Atom:
    """An axis that is not composed of others.  `fixed` says why it is born whole, if it is."""

    size: int
    fixed: str | None = None
    serial: int = field(default_factory=lambda: next(_serial))

    def __repr__(self) -> str:
        return f"a{self.serial}:{self.size}"


@dataclass(frozen=True)
class Product:
    """Row-major composition, outermost first.  `Product.of` normalises; use it to build one."""

    parts: tuple[Axis, ...]

    @property
    def size(self) -> int:
        return math.prod(part.size for part in self.parts)

    @staticmethod
    def of(parts: Iterable[Axis]) -> Axis:
        """Nested products flatten, units go, a product of one axis is that axis."""
        flat: list[Axis] = []
        for part in parts:
            if part.size != 1:
                flat.extend(part.parts if isinstance(part, Product) else (part,))
        return flat[0] if len(flat) == 1 else Product(tuple(flat))

    def __repr__(self) -> str:
        return "(" + " ".join(map(repr, self.parts)) + ")" if self.parts else "1"


@dataclass(frozen=True)
class Sum:
    """Concatenation.  `Sum.of` normalises; use it to build one."""

    parts: tuple[Axis, ...]

    @property
    def size(self) -> int:
        return sum(part.size for part in self.parts)

    @staticmethod
    def of(parts: Iterable[Axis]) -> Axis:
        """Nested sums flatten, empty parts go, a sum of one axis is that axis."""
        flat: list[Axis] = []
        for part in parts:
            if part.size != 0:
                flat.extend(part.parts if isinstance(part, Sum) else (part,))
        return flat[0] if len(flat) == 1 else Sum(tuple(flat))

    def __repr__(self) -> str:
        return "[" + " | ".join(map(repr, self.parts)) + "]"


Axis = Atom | Product | Sum

ONE: Axis = Product(())


def atom(size: int) -> Axis:
    """A fresh axis about which nothing is known yet."""
    if size == 0:  # register tokens of which there are none
        return Atom(0, fixed="empty")
    return ONE if size == 1 else Atom(size)


def fixed(size: int, why: str) -> Axis:
    """A fresh axis that must stay whole."""
    return ONE if size == 1 else Atom(size, fixed=why)


def atoms_of(axis: Axis) -> Iterator[Atom]:
    """Every atom of a (resolved) axis, outermost first; an atom may come twice."""
    if isinstance(axis, Atom):
        yield axis
        return
    for part in axis.parts:
        yield from atoms_of(part)


def size_of(axis: Axis, sizes: Mapping[Atom, int]) -> int:
    """The number of elements of an axis, some of whose atoms have other sizes than their own."""
    if isinstance(axis, Atom):
        return sizes.get(axis, axis.size)
    parts = [size_of(part, sizes) for part in axis.parts]
    return math.prod(parts) if isinstance(axis, Product) else sum(parts)


def with_sizes(axis: Axis, sizes: dict[int, int]) -> Axis:
    """The axis with fixed atoms of certain sizes (a stand-in batch) taken for others of another size."""
    if isinstance(axis, Atom):
        return Atom(sizes[axis.size], axis.fixed) if axis.fixed and axis.size in sizes else axis
    parts = [with_sizes(part, sizes) for part in axis.parts]
    return Product.of(parts) if isinstance(axis, Product) else Sum.of(parts)


def coordinates(axis: Axis) -> dict[Atom, np.ndarray]:
    """For each atom of an axis of size n: which of its elements each of the n positions uses.

    int64 [n]; -1 where a position does not involve the atom (another part of a `Sum`).
    """
    if isinstance(axis, Atom):
        return {axis: np.arange(axis.size)}
    out: dict[Atom, np.ndarray] = {}
    if isinstance(axis, Product):
        inner, outer = axis.size, 1
        for part in axis.parts:
            inner //= part.size
            for a, index in coordinates(part).items():
                out[a] = np.tile(np.repeat(index, inner), outer)
            outer *= part.size
        return out
    start = 0
    for part in axis.parts:
        for a, index in coordinates(part).items():
            whole = out.setdefault(a, np.full(axis.size, -1))
            whole[start : start + part.size] = index
        start += part.size
    return out


def refine(left: Sequence[int], right: Sequence[int]) -> list[Segment]:
    """Cut two factorisations of one number where their running products agree.

    Inside a segment the factors of both sides are split further, into `pieces`, if all running
    products divide one another in turn (6*4 = 3*8: 3, 2, 4); otherwise the segment does not align.
    """
    segments: list[Segment] = []
    i = j = 0
    while i < len(left) or j < len(right):
        i0, j0 = i, j
        a, b = left[i], right[j]
        i, j = i + 1, j + 1
        while a != b:
            if a < b:
                a, i = a * left[i], i + 1
            else:
                b, j = b * right[j], j + 1
        segments.append(_segment(left, right, range(i0, i), range(j0, j)))
    return segments


@dataclass(frozen=True)
class Segment:
    """A run of factors on either side with equal products; `pieces` are None if they don't align."""

    left: range
    right: range
    left_pieces: list[list[int]] | None
    right_pieces: list[list[int]] | None


def _segment(left: Sequence[int], right: Sequence[int], i: range, j: range) -> Segment:
    left_cuts = list(itertools.accumulate((left[k] for k in i), initial=1, func=_times))
    right_cuts = list(itertools.accumulate((right[k] for k in j), initial=1, func=_times))
    cuts = sorted({*left_cuts, *right_cuts})
    if any(b % a for a, b in itertools.pairwise(cuts)):
        return Segment(i, j, None, None)
    return Segment(i, j, _pieces(left_cuts, cuts), _pieces(right_cuts, cuts))


def _times(a: int, b: int) -> int:
    return a * b


def _pieces(own: list[int], cuts: list[int]) -> list[list[int]]:
    """For each factor between two of its `own` running products, the factors that `cuts` makes."""
    out = []
    for low, high in itertools.pairwise(own):
        inside = [c for c in cuts if low <= c <= high]
        out.append([b // a for a, b in itertools.pairwise(inside)])
    return out


class Solver:
    """What is known about atoms: a union-find whose classes may be bound to a product or sum."""

    def __init__(self) -> None:
        self._bound: dict[Atom, Axis] = {}
        self._frozen: dict[Atom, Reason] = {}

    def resolve(self, axis: Axis) -> Axis:
        """The axis with everything known filled in."""
        if isinstance(axis, Atom):
            if axis not in self._bound:
                return axis
            known = self._bound[axis] = self.resolve(self._bound[axis])  # path compression
            return known
        parts = tuple(self.resolve(part) for part in axis.parts)
        if parts == axis.parts:
            return axis
        return Product.of(parts) if isinstance(axis, Product) else Sum.of(parts)

    def frozen(self, a: Atom) -> Reason | None:
        """Why the atom must stay whole, or None if it may shrink."""
        return self._frozen.get(a) or (Reason(a.fixed) if a.fixed else None)

    def freeze(self, axis: Axis, reason: Reason) -> None:
        """Keep every atom of the axis whole; the first reason given is the one remembered."""
        for a in atoms_of(self.resolve(axis)):
            if self.frozen(a) is None:
                self._frozen[a] = reason

    def unify(self, a: Axis, b: Axis, reason: Reason) -> None:
        """Make two axes equal.  `reason` is given to whatever has to be frozen on the way."""
        a, b = self.resolve(a), self.resolve(b)
        if a == b:
            return
        if a.size != b.size:
            raise AxisError(f"{a} has {a.size} elements, {b} has {b.size}")
        if isinstance(a, Atom) and isinstance(b, Atom) and b.serial > a.serial:
            self._bind(b, a)  # the older atom stands for both
        elif isinstance(a, Atom):
            self._bind(a, b)
        elif isinstance(b, Atom):
            self._bind(b, a)
        elif isinstance(a, Product) and isinstance(b, Product):
            self._unify_products(a, b, reason)
        elif isinstance(a, Sum) and isinstance(b, Sum):
            self._unify_sums(a, b, reason)
        elif isinstance(a, Product) and isinstance(b, Sum):
            self._unify_product_with_sum(a, b, reason)
        elif isinstance(a, Sum) and isinstance(b, Product):
            self._unify_product_with_sum(b, a, reason)

    def split(self, factor: Axis, sizes: Sequence[int], reason: Reason) -> list[Axis]:
        """Factor an axis into a product of axes of the given sizes."""
        if len(sizes) == 1:
            return [factor]
        pieces: list[Axis] = [Atom(size) for size in sizes]
        self.unify(factor, Product.of(pieces), reason)
        return pieces

    def _bind(self, a: Atom, b: Axis) -> None:
        why = self.frozen(a)
        if a in atoms_of(b):  # a = Product(.., a, ..) has no finite solution but "whole"
            self.freeze(b, Reason("it would have to contain itself"))
            return
        self._bound[a] = b
        if a.fixed is not None:
            self._fix(b, a.fixed)
        elif why is not None:
            self.freeze(b, why)

    def _fix(self, axis: Axis, why: str) -> None:
        """What equals a fixed axis, or is a part of it, is as if born fixed."""
        for a in set(atoms_of(axis)):
            if a.fixed is None:
                twin = self._bound[a] = Atom(a.size, why)
                if a in self._frozen:
                    self._frozen[twin] = self._frozen[a]

    def _freeze_both(self, a: Iterable[Axis], b: Iterable[Axis], reason: Reason) -> None:
        for axis in (*a, *b):
            self.freeze(axis, Reason("its factors do not line up", reason.node, reason.where))

    def _unify_products(self, a: Product, b: Product, reason: Reason) -> None:
        for seg in refine([p.size for p in a.parts], [p.size for p in b.parts]):
            left, right = [a.parts[i] for i in seg.left], [b.parts[j] for j in seg.right]
            if seg.left_pieces is None or seg.right_pieces is None:
                self._freeze_both(left, right, reason)
                continue
            left = self._split_each(left, seg.left_pieces, reason)
            right = self._split_each(right, seg.right_pieces, reason)
            for x, y in zip(left, right, strict=True):
                self.unify(x, y, reason)

    def _split_each(self, factors: list[Axis], sizes: list[list[int]], reason: Reason) -> list[Axis]:
        pieces = (self.split(f, s, reason) for f, s in zip(factors, sizes, strict=True))
        return list(itertools.chain.from_iterable(pieces))

    def _unify_sums(self, a: Sum, b: Sum, reason: Reason) -> None:
        cuts = sorted({*_ends(a), *_ends(b)})
        left, right = self._cut(a, cuts, reason), self._cut(b, cuts, reason)
        for x, y in zip(left, right, strict=True):
            self.unify(x, y, reason)

    def _cut(self, axis: Sum, cuts: list[int], reason: Reason) -> list[Axis]:
        """The axis as a list of parts that end at each of the cuts."""
        out: list[Axis] = []
        start = 0
        for part in axis.parts:
            inside = [start, *(c for c in cuts if start < c <= start + part.size)]
            start += part.size
            if len(inside) == 2:
                out.append(part)
                continue
            pieces = [atom(b - a) for a, b in itertools.pairwise(inside)]
            self.unify(part, Sum.of(pieces), reason)
            out.extend(pieces)
        return out

    def _unify_product_with_sum(self, a: Product, b: Sum, reason: Reason) -> None:
        """(n r) = [p1 | p2 | ..]: each part is whole rows of r, and the rows are counted: n is frozen."""
        row = math.gcd(*(part.size for part in b.parts))
        count = a.size // row
        aligned = refine([p.size for p in a.parts], [count, row] if row > 1 else [count])
        if row == 1 or any(seg.left_pieces is None for seg in aligned):
            self._freeze_both([a], [b], reason)
            return
        why = f"it counts the parts of a concatenation of {len(b.parts)}"
        rows = Atom(row)
        self.unify(a, Product.of((fixed(count, why), rows)), reason)
        for part in b.parts:
            self.unify(part, Product.of((fixed(part.size // row, why), rows)), reason)


def _ends(axis: Sum) -> Iterator[int]:
    return itertools.accumulate(part.size for part in axis.parts)
