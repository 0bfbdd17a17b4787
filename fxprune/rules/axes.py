"""The type system: what each dimension of a tensor *means*.

An axis is an `Atom`, a `Product` of axes (row-major, outermost first) or a `Sum` (a concatenation):

    residual stream        embed
    fused qkv rows         Product(3, heads, head_dim)
    merged patches         Product(4, embed)
    [q_bias | k_bias]      Sum(q, k)

Atoms are unification variables.  A `Solver` holds what is known about them: equal to which other
axis, or frozen (it may not shrink) and why.  Rules only ever build terms; the solver alone unifies.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

__all__ = ["ONE", "PIXELS", "Atom", "Axis", "Kind", "Product", "Reason", "Sum", "frozen"]

# What an atom is frozen for, where code asks: an input's dimension, its batch, places in an image, ..
Kind = Literal["op", "input", "batch", "pixels", "output", "tokens", "empty", "extremum"]

_serial = itertools.count()


@dataclass(frozen=True)
class Reason:
    """Why an atom is frozen: `text` for people, `kind` for code, and the node that made it so."""

    text: str
    node: str | None = None
    where: str | None = None  # the user's source line, "file.py:12"
    kind: Kind = "op"

    def __str__(self) -> str:
        at = f" at {self.node}" if self.node else ""
        return f"{self.text}{at}" + (f" ({self.where})" if self.where else "")

    @property
    def brief(self) -> str:
        """The same, with the source file's name only."""
        return str(replace(self, where=self.where and os.path.basename(self.where)))


PIXELS = Reason("pixels", kind="pixels")


@dataclass(eq=False, frozen=True)
class Atom:
    """An axis that is not composed of others.

    frozen: why it is born frozen, if it is.
    per_sample: how many elements it has for each sample, where its size follows the batch; else 0.
    """

    size: int
    frozen: Reason | None = None
    per_sample: int = 0
    serial: int = field(default_factory=lambda: next(_serial))

    @property
    def is_batch(self) -> bool:
        """Is each element one sample?"""
        return self.per_sample == 1

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
        """Build a product: nested ones flatten, units go, a product of one axis is that axis."""
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
        """Build a sum: nested ones flatten, empty parts go, a sum of one axis is that axis."""
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
    """Return a fresh axis about which nothing is known yet."""
    if size == 0:  # register tokens of which there are none
        return Atom(0, Reason("empty", kind="empty"))
    return ONE if size == 1 else Atom(size)


def frozen(size: int, why: str | Reason) -> Axis:
    """Return a fresh axis that is frozen."""
    return ONE if size == 1 else Atom(size, why if isinstance(why, Reason) else Reason(why))


def batch(size: int, per_sample: int = 1) -> Axis:
    """Return a fresh axis whose size follows the batch: `per_sample` elements for each sample."""
    return ONE if size == 1 else Atom(size, Reason("input", kind="batch"), per_sample)


def atoms_of(axis: Axis) -> Iterator[Atom]:
    """Yield every atom of a (resolved) axis, outermost first; an atom may come twice."""
    if isinstance(axis, Atom):
        yield axis
        return
    for part in axis.parts:
        yield from atoms_of(part)


def size_of(axis: Axis, sizes: Mapping[Atom, int]) -> int:
    """Return the number of elements of an axis, some of whose atoms have other sizes than their own."""
    if isinstance(axis, Atom):
        return sizes.get(axis, axis.size)
    parts = [size_of(part, sizes) for part in axis.parts]
    return math.prod(parts) if isinstance(axis, Product) else sum(parts)


def with_batch(axis: Axis, samples: int) -> Axis:
    """Return the axis as it is for another number of samples."""
    if isinstance(axis, Atom):
        known = axis.per_sample
        return Atom(known * samples, axis.frozen, known) if known else axis
    parts = [with_batch(part, samples) for part in axis.parts]
    return Product.of(parts) if isinstance(axis, Product) else Sum.of(parts)


def coordinates(axis: Axis) -> dict[Atom, np.ndarray]:
    """Map each atom of an axis to the index of its element at every position along the axis.

    int64 [axis.size]; -1 where a position does not involve the atom (another part of a `Sum`).  An atom that
    occurs twice in one product has the last one's: the solver freezes it.
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
            places = out.setdefault(a, np.full(axis.size, -1))
            places[start : start + part.size] = index
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
    """Cut each factor between two of its `own` running products into the factors that `cuts` makes."""
    out = []
    for low, high in itertools.pairwise(own):
        inside = [c for c in cuts if low <= c <= high]
        out.append([b // a for a, b in itertools.pairwise(inside)])
    return out
