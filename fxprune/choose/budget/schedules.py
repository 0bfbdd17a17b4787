"""How groups divide a ratio: a schedule gives, for every level in [0, 1], each group's count.

The level is the share of channels that goes.  A schedule never gives a group more at a higher level.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from itertools import groupby

import numpy as np

from fxprune.analysis.analysis import Analysis, Group
from fxprune.choose.budget.floors import floors
from fxprune.choose.budget.request import Budget
from fxprune.choose.budget.ties import Tied, Ties
from fxprune.choose.importance.scores import Scores
from fxprune.rules.axes import Product

__all__ = ["Pooled", "Schedule", "Uniform", "isomorphic", "multiple_of", "rounded"]


class Schedule(ABC):
    """A family of choices, from everything (level 0) to every group's floor (level 1).

    Of groups that are tied to each other it speaks of the smallest.
    """

    def __init__(self, analysis: Analysis, ties: Ties, budget: Budget) -> None:
        least = floors(analysis, [group for tied in ties.values() for group in tied], budget)
        self.least = {
            first: max(-(-least[group] // times) for group, times in tied.items())
            for first, tied in ties.items()
        }
        self.multiple = {
            first: math.lcm(*(_of_steps(analysis, g, n, budget.round_to) for g, n in tied.items()))
            for first, tied in ties.items()
        }

    @abstractmethod
    def counts(self, level: float) -> dict[Group, int]:
        """Compute how many elements each group keeps."""

    @abstractmethod
    def floored(self, counts: Mapping[Group, int], level: float) -> set[Group]:
        """Return the groups that would have lost more at this level, were it not for their floor."""

    def moves(self, counts: Mapping[Group, int]) -> Iterator[tuple[Group, int]]:
        """Yield a step up or down of each group."""
        for group, multiple in self.multiple.items():
            down, up = (
                (counts[group] - 1) // multiple * multiple,
                counts[group] // multiple * multiple + multiple,
            )
            if down >= self.least[group]:
                yield group, down
            if counts[group] < group.size:
                yield group, min(up, group.size)


class Uniform(Schedule):
    """Every group loses the same share."""

    def counts(self, level: float) -> dict[Group, int]:
        return {
            group: rounded(max(self.least[group], group.size * (1 - level)), group.size, multiple)
            for group, multiple in self.multiple.items()
        }

    def floored(self, counts: Mapping[Group, int], level: float) -> set[Group]:
        return {
            group
            for group, multiple in self.multiple.items()
            if rounded(group.size * (1 - level), group.size, multiple) < min(self.least[group], counts[group])
        }


class Pooled(Schedule):
    """Groups in one pool share a ranking: the elements that matter least for what they cost go first.

    Where heads keep elements of their own, a step takes one from every head, each its least; of groups that
    are tied, one from the smallest and as large a share from the others.

    pool: groups with the same key rank together.
    price: what removing one element of a group saves.
    """

    def __init__(
        self,
        analysis: Analysis,
        ties: Ties,
        budget: Budget,
        scores: Scores,
        pool: Callable[[Group], Hashable],
        price: Callable[[Group], float],
    ) -> None:
        super().__init__(analysis, ties, budget)
        self.sizes = {group: group.size for group in ties}
        self.ties = ties
        keyed = sorted(((repr(pool(group)), i, group) for i, group in enumerate(ties)), key=lambda k: k[:2])
        self.pools = []
        for _, members in groupby(keyed, key=lambda k: k[0]):
            steps: list[_Removal] = []
            total = 0
            for _, _, group in members:
                least, multiple, tied = self.least[group], self.multiple[group], ties[group]
                cost = sum(times * price(other) for other, times in tied.items())
                steps += _removals(group, _ascending(tied, scores), least, multiple, cost)
                total += group.size * sum(tied.values())
            self.pools.append((total, sorted(steps, key=lambda step: step.worth)))

    def counts(self, level: float) -> dict[Group, int]:
        counts = dict(self.sizes)
        for total, steps in self.pools:
            goal, gone = level * total, 0
            for step in steps:
                elements = step.elements * sum(self.ties[step.group].values())
                if gone + elements / 2 > goal:
                    break
                gone += elements
                counts[step.group] -= step.elements
        return counts

    def floored(self, counts: Mapping[Group, int], level: float) -> set[Group]:
        """Return those that are down to their floor: the ranking was left no more of them to take."""
        return {
            group
            for group, multiple in self.multiple.items()
            if level > 0 and group.size > 1 and (counts[group] - 1) // multiple * multiple < self.least[group]
        }


class _Removal:
    """One step of a group: how many elements go at once, and what they are worth per cost."""

    def __init__(self, group: Group, elements: int, worth: float) -> None:
        self.group, self.elements, self.worth = group, elements, worth


def _ascending(tied: Tied, scores: Scores) -> np.ndarray:
    """Add up what the least of each group, and of each head in it, are worth, then the next of each, ..."""
    of_each = (np.sort(np.atleast_2d(scores[group]), axis=-1).sum(0) for group in tied)
    taken = [own.reshape(-1, times).sum(1) for own, times in zip(of_each, tied.values(), strict=True)]
    together: np.ndarray = np.sum(taken, axis=0)
    return together


def _removals(
    group: Group, ascending: np.ndarray, least: int, multiple: int, price: float
) -> Iterable[_Removal]:
    """Order the removals of a group, from all elements to its floor; worth never falls along the way."""
    worth, size = -math.inf, group.size
    while size > least:
        smaller = (size - 1) // multiple * multiple
        if smaller < least:
            return
        gone = ascending[group.size - size : group.size - smaller]
        worth = max(worth, float(gone.sum()) / (len(gone) * max(price, 1e-30)))
        yield _Removal(group, size - smaller, worth)
        size = smaller


def isomorphic(analysis: Analysis) -> Callable[[Group], Hashable]:
    """Pool groups of one role and shape (Isomorphic Pruning, https://arxiv.org/abs/2407.04616)."""

    def key(group: Group) -> Hashable:
        heads = group.inside.size if group.inside else 1
        shapes = sorted(
            (tuple(axis.size for axis in analysis.weights[name]), site.dim)
            for site in group.sites
            for name in [analysis.names.get(site.name, site.name)]
        )
        return group.role, group.size, heads, tuple(shapes)

    return key


def _of_steps(analysis: Analysis, group: Group, times: int, round_to: int) -> int:
    """Return what the count of the smallest must be a multiple of, of which a group has `times` as many."""
    multiple = multiple_of(analysis, group, round_to)
    return multiple // math.gcd(multiple, times)


def rounded(count: float, size: int, multiple: int) -> int:
    """Round half up to at least one, to a multiple (upwards) as far as there are elements."""
    n = max(1, math.floor(count + 0.5))
    return min(size, -(-n // multiple) * multiple)


def multiple_of(analysis: Analysis, group: Group, round_to: int) -> int:
    """Return what a count must be a multiple of, so that the widths it is a factor of are of `round_to`."""
    others = [
        axis.size // group.size
        for site in group.sites
        for axis in [analysis.axis(site)]
        if isinstance(axis, Product) or axis is group.atom
    ]
    return round_to // math.gcd(round_to, math.gcd(*others)) if others else round_to
