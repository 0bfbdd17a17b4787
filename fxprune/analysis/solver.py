"""Solve for axes: a union-find whose classes may be bound to a product or a sum."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from fxprune.rules.axes import Atom, Axis, Product, Reason, Sum, atom, atoms_of, frozen, refine

__all__ = ["AxisError", "Reason", "Solver"]


class AxisError(Exception):
    """Two axes that must be equal differ in size: the rule that said so does not fit the call."""


class Solver:
    """What is known about atoms: a union-find whose classes may be bound to a product or sum."""

    def __init__(self) -> None:
        self._bound: dict[Atom, Axis] = {}
        self._frozen: dict[Atom, Reason] = {}

    def resolve(self, axis: Axis) -> Axis:
        """Return the axis with everything known filled in."""
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
        """Return why the atom is frozen, or None if it may shrink."""
        return self._frozen.get(a) or a.frozen

    def reasons(self) -> dict[Atom, Reason]:
        """Return what was frozen, and why; atoms that are born frozen say so themselves."""
        return dict(self._frozen)

    def freeze(self, axis: Axis, reason: Reason) -> None:
        """Freeze every atom of the axis; the first reason given is the one remembered."""
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
        if a in atoms_of(b):  # a = Product(.., a, ..) has no finite solution but a frozen one
            self.freeze(b, Reason("it would have to contain itself"))
            return
        self._bound[a] = b
        if a.frozen is not None:
            self._be_born_as(b, a, a.frozen)
        elif why is not None:
            self.freeze(b, why)

    def _be_born_as(self, axis: Axis, born: Atom, why: Reason) -> None:
        """Make what equals an atom born frozen as if born so; if that follows the batch, one factor does."""
        atoms = list(dict.fromkeys(atoms_of(axis)))
        apart = replace(why, kind="input") if why.kind == "batch" else why  # of a factor that does not follow
        samples = born.size // born.per_sample if born.per_sample else 0
        if any(a.per_sample for a in atoms):
            samples = 0  # it is known which
        for a in atoms:
            follows = samples > 0 and a.size % samples == 0
            per_sample = a.size // samples if follows else a.per_sample
            samples = 0 if follows else samples
            if a.frozen is None or follows:
                stand_in = self._bound[a] = Atom(a.size, why if follows else a.frozen or apart, per_sample)
                if a in self._frozen:
                    self._frozen[stand_in] = self._frozen[a]

    def _freeze_both(self, a: Iterable[Axis], b: Iterable[Axis], reason: Reason) -> None:
        for axis in (*a, *b):
            self.freeze(axis, replace(reason, text="its factors do not line up"))

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
        """Return the axis as a list of parts that end at each of the cuts."""
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
        """Unify (n r) = [p1 | p2 | ..]: each part is whole rows of r, the rows are counted: n is frozen.

        Where the parts' borders cut through the factors ((8 6) = [32 | 16]: groups of 6), rows are as long as
        both allow: (8 3 2) = [16 2 | 8 2].
        """
        row = math.gcd(*(part.size for part in b.parts))
        for tail in itertools.accumulate((part.size for part in reversed(a.parts)), _times):
            if tail % row and row % tail:
                row = math.gcd(row, tail)
        count = a.size // row
        aligned = refine([p.size for p in a.parts], [count, row] if row > 1 else [count])
        if row == 1 or any(seg.left_pieces is None for seg in aligned):
            self._freeze_both([a], [b], reason)
            return
        why = f"it counts the parts of a concatenation of {len(b.parts)}"
        rows = Atom(row)
        self.unify(a, Product.of((frozen(count, why), rows)), reason)
        for part in b.parts:
            self.unify(part, Product.of((frozen(part.size // row, why), rows)), reason)


def _times(a: int, b: int) -> int:
    return a * b


def _ends(axis: Sum) -> Iterator[int]:
    return itertools.accumulate(part.size for part in axis.parts)
