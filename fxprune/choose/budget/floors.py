"""The least that every group keeps: what is asked for, or enough to leave a network that works.

A ranking over all groups may find one group's elements all less important than another's, and take it down
to an element or two.  A norm over one channel is a constant, and what reads it no longer depends on the
input.  So without `floor=` a group keeps

- of channels that a norm or another statistic is taken over, 8; and
- where no ratio of its own says what it keeps (a ranking, or a share of parameters or time): 4 of other
  channels, and a tenth, or what the ratio leaves of everything where that is less;

but never more than half of it: at a ratio of 0.5, the same everywhere, floors change nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from fxprune.analysis.analysis import Analysis, Group
from fxprune.choose.budget.request import Budget
from fxprune.rules.axes import Atom, atoms_of

__all__ = ["floors"]

NORMALISED, CHANNELS = 8, 4  # elements
SHARE = 0.1


def floors(analysis: Analysis, groups: Sequence[Group], budget: Budget) -> dict[Group, int]:
    """Compute how many elements each group keeps at least."""
    if budget.floor is not None:
        return {group: _asked(group, budget.floor) for group in groups}
    normalised = _normalised(analysis)
    return {group: _usual(group, group.atom in normalised, budget) for group in groups}


def _asked(group: Group, floor: int | float) -> int:
    least = floor if isinstance(floor, int) else math.ceil(floor * group.size - 1e-9)
    return min(group.size, max(1, least))


def _usual(group: Group, normalised: bool, budget: Budget) -> int:
    few, share = 1, 0
    if not budget.plain:
        few, share = CHANNELS, _half_up(group.size * min(SHARE, 1 - budget.ratio))
    if group.role == "heads":
        few = 1
    elif normalised:
        few = NORMALISED
    return max(1, min(_half_up(group.size / 2), max(few, share)))


def _half_up(number: float) -> int:
    return math.floor(number + 0.5)


def _normalised(analysis: Analysis) -> set[Atom]:
    """Return the atoms that a statistic is taken over."""
    return {
        a
        for step in analysis.steps.values()
        if step.rule is not None and step.rule.masked is not None
        for axis in step.flow.reduced
        for a in atoms_of(axis)
    }
