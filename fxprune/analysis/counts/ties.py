"""What a value has of the counts of elements that it was summed over."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from fxprune.analysis.counts.formulas import Formula
from fxprune.analysis.counts.numbers import Factor, Place
from fxprune.rules.axes import Axis

__all__ = ["NOTHING", "Pending", "State", "Tie", "added", "multiplied"]


@dataclass(frozen=True)
class Tie:
    """That a tensor is a statistic over axes, or a multiple of one.

    degrees: for each axis, the power of its size that the tensor grows by: 1 of a sum, 1/2 of a norm.
    plain: none is a product of two tensors, or of places of one, that is summed: its scale is its own.
    direct: it is the statistic itself, laid out otherwise, or times a number.
    mixed: something else was added to it.
    """

    degrees: Mapping[Axis, float]
    plain: bool = True
    direct: bool = True
    mixed: bool = False

    @property
    def times(self) -> dict[Axis, int]:
        """How often each axis may be a factor of a number that counts."""
        return {axis: max(1, math.ceil(abs(degree))) for axis, degree in self.degrees.items()}

    def to_the(self, power: float) -> Tie:
        return replace(self, degrees={axis: d * power for axis, d in self.degrees.items()})

    def by(self, formula: Formula, power: float) -> Tie:
        """Return what is left once it is multiplied by a number that counts, to a power."""
        degrees = dict(self.degrees)
        for axis, times in formula.axes:
            degrees[axis] += times * formula.degree * power
        return replace(self, degrees=degrees)

    def admits(self, formula: Formula, power: float, *, read: bool) -> bool:
        """Tell whether a number may be the count that a statistic is divided by.

        It takes the tensor nearer to what does not grow: a sum is divided by the count, a norm by its root.
        What does not grow (a mean) is multiplied by Bessel's correction, or by the count, if that is read;
        any other number is a factor of its own there, as it is of a sum of products.

        read: of a size, rather than written.
        """
        if not self.plain:
            return False
        for axis, times in formula.axes:
            step, degree = times * formula.degree * power, self.degrees[axis]
            if degree == 0:
                ok = step == 0 or (read and step == 1 and self.direct)
            else:
                whole = degree.is_integer()
                ok = step * degree < 0 and abs(step) <= abs(degree) and step.is_integer() == whole
            if not ok:
                return False
        return True


@dataclass(frozen=True)
class Pending:
    """A factor of a tensor that was multiplied by it before it met a statistic: `(x / n).sum(-1)`."""

    factor: Factor
    number: object
    place: Place
    power: float


@dataclass(frozen=True)
class State:
    """What is known of a value: its tie, and factors that may still turn out to be counts.

    logged: of a logarithm, what it is taken of was summed over.
    """

    tie: Tie | None = None
    pending: tuple[Pending, ...] = field(default=())
    logged: tuple[Axis, ...] = ()

    def to_the(self, power: float) -> State:
        pending = tuple(replace(p, power=p.power * power) for p in self.pending)
        return State(self.tie.to_the(power) if self.tie else None, pending)


NOTHING = State()


def multiplied(ties: Iterable[Tie | None]) -> Tie | None:
    """Return the tie of a product of tensors; None among them is one without."""
    given = [*ties]
    found = [tie for tie in given if tie is not None]
    if not found:
        return None
    if len(given) == 1:
        return found[0]
    degrees: dict[Axis, float] = {}
    for tie in found:
        for axis, degree in tie.degrees.items():
            degrees[axis] = degrees.get(axis, 0.0) + degree
    return _tie({axis: d for axis, d in degrees.items() if d}, found, direct=False)


def added(ties: Iterable[Tie | None]) -> Tie | None:
    """Return the tie of a sum of tensors."""
    given = [*ties]
    found = [tie for tie in given if tie is not None]
    if not found:
        return None
    degrees: dict[Axis, float] = {}
    for tie in found:
        for axis, degree in tie.degrees.items():
            degrees[axis] = max(degree, degrees.get(axis, degree), key=abs)
    if len(found) == len(given):
        return _tie(degrees, found, direct=all(tie.direct for tie in found))
    made = _tie({axis: d for axis, d in degrees.items() if d}, found, direct=False)
    return made and replace(made, mixed=True, plain=False)


def _tie(degrees: dict[Axis, float], of: list[Tie], *, direct: bool) -> Tie | None:
    if not degrees:
        return None
    return Tie(
        degrees,
        plain=all(tie.plain for tie in of),
        direct=direct,
        mixed=any(tie.mixed for tie in of),
    )
