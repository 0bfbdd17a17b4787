"""Numbers as they follow from a count: `16`, `1 / 16`, `16 ** 0.5` and `16 / 15` of 16 elements."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from fxprune.rules.axes import Atom, Axis, atoms_of

__all__ = ["Formula", "formulas_of", "rank"]

# Powers of n and of n - 1: the count itself, its root, Bessel's correction.
_POWERS = (
    *((1.0, 0.0), (-1.0, 0.0), (0.5, 0.0), (-0.5, 0.0)),
    *((0.0, 1.0), (0.0, -1.0), (0.0, 0.5), (0.0, -0.5)),
    *((1.0, -1.0), (-1.0, 1.0), (0.5, -0.5), (-0.5, 0.5)),
)
_LEAST, _FEW = 4, 8  # of fewer, a count, and n / (n - 1), are too often other numbers
_SMALL = 1e-3  # what is added to a count lest it be zero
_MOST = 5  # dimensions that one number counts together


@dataclass(frozen=True)
class Formula:
    """A number that counts the elements along axes: `n ** power * (n - 1) ** less`, or `n + beside`.

    axes: whose sizes make n, each with how often it is a factor.
    """

    axes: tuple[tuple[Axis, int], ...]
    power: float
    less: float = 0.0
    beside: float = 0.0
    whole: bool = False

    @property
    def degree(self) -> float:
        """The power of n that it grows by."""
        return self.power + self.less

    @property
    def atoms(self) -> set[Atom]:
        return {a for axis, _ in self.axes for a in atoms_of(axis)}

    def at(self, size: Callable[[Axis], int]) -> int | float:
        """Return the number for other sizes of the axes."""
        n: int = math.prod(size(axis) ** times for axis, times in self.axes)
        if self.beside:
            return math.pow(n + self.beside, self.power)
        if self.less < 0 and n == 1:
            return math.inf  # as one element has no unbiased variance
        found = math.pow(n, self.power) * math.pow(n - 1, self.less)
        return round(found) if self.whole else found


def rank(formula: Formula) -> tuple[bool, bool, bool]:
    """Order what a number may be: a count, then roots of one and corrections."""
    return formula.degree == 0, abs(formula.power) != 1, bool(formula.beside)


def formulas_of(number: float, times: Mapping[Axis, int]) -> Iterator[Formula]:
    """List the formulas that give a number.

    times: the axes whose sizes it may be made of, each with how often it may be a factor.
    """
    if number <= 0 or not math.isfinite(number):
        return
    ranges = [range(most + 1) for most in [*times.values()][:_MOST]]
    for chosen in itertools.product(*ranges):
        axes = tuple((axis, k) for axis, k in zip(times, chosen, strict=False) if k)
        n = math.prod(axis.size**k for axis, k in axes)
        if n < _LEAST:
            continue
        for power, less in _POWERS:
            near = 1e-12 if abs(power) == 1 and not less else 1e-7  # (a root may have been one in float32)
            value = float(n) ** power * float(n - 1) ** less
            if (
                (not less or n > 2)
                and (power + less or n >= _FEW)
                and math.isclose(value, number, rel_tol=near)
            ):
                whole = isinstance(number, int) and (power, less) in ((1.0, 0.0), (0.0, 1.0))
                yield Formula(axes, power, less, whole=whole)
        for power, base in ((1.0, number), (-1.0, 1 / number)):
            if 1e-12 * n < abs(base - n) <= _SMALL:
                yield Formula(axes, power, beside=base - n)
