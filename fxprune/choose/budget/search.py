"""The level at which a schedule costs what is wanted, then group by group to the nearest choice."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

from fxprune.analysis.analysis import Group
from fxprune.choose.budget.costs import Cost
from fxprune.choose.budget.schedules import Schedule

__all__ = ["Found", "nearest"]

# A choice this near to the goal, as a share of it, is as good as any.
CLOSE = 0.005
MOVES, TRIALS = 20, 200  # moves at most; choices tried for each


@dataclass(frozen=True)
class Found:
    """counts per group, what they cost by the axes, and the level of the schedule that they are near."""

    counts: dict[Group, int]
    cost: float
    level: float = 0.0


def nearest(schedule: Schedule, cost: Cost, goal: float) -> Found:
    """Return the choice whose cost is nearest to the goal.

    Two neighbouring levels enclose the goal.  Many groups take a step between them (all of one size at
    once); they take it one after the other, until the goal is met.
    """

    def at(level: float) -> Found:
        counts = schedule.counts(level)
        return Found(counts, cost(counts), level)

    above, below = at(0.0), at(1.0)
    if below.cost >= goal or above.cost <= goal:
        return below if below.cost >= goal else above
    low, high = 0.0, 1.0
    for _ in range(40):
        if above.counts == below.counts or high - low < 1e-9:
            break
        middle = (low + high) / 2
        found = at(middle)
        if found.cost >= goal:
            low, above = middle, found
        else:
            high, below = middle, found

    stepping = [group for group, count in above.counts.items() if below.counts[group] != count]

    def after(taken: int) -> Found:
        counts = above.counts | {group: below.counts[group] for group in stepping[:taken]}
        return Found(counts, cost(counts), low)

    few = _last(lambda taken: after(taken).cost >= goal, len(stepping))
    found = min(after(few), after(min(few + 1, len(stepping))), key=lambda found: abs(found.cost - goal))
    return _refined(found, schedule, cost, goal)


def _refined(found: Found, schedule: Schedule, cost: Cost, goal: float) -> Found:
    """Approach the goal by steps of two groups, forth and back, where one step of a group is too much."""
    for _ in range(MOVES):
        if abs(found.cost - goal) <= CLOSE * goal:
            break
        alone = [dict([move]) for move in schedule.moves(found.counts)]
        pairs = ({**a, **b} for a, b in itertools.combinations(alone, 2) if a.keys() != b.keys())
        moved = (found.counts | move for move in itertools.islice(itertools.chain(alone, pairs), TRIALS))
        best = min(
            (Found(counts, cost(counts), found.level) for counts in moved), key=lambda f: abs(f.cost - goal)
        )
        if abs(best.cost - goal) >= abs(found.cost - goal):
            break
        found = best
    return found


def _last(holds: Callable[[int], bool], most: int) -> int:
    """Return the largest number up to `most` for which a falling condition holds; it holds for 0."""
    low, high = 0, most + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low
