"""From a request and scores to how many elements each group keeps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fxprune.analysis.analysis import Analysis, Group
from fxprune.choose.budget.costs import Cost, Counts, cost_of, saving_of
from fxprune.choose.budget.floors import floors
from fxprune.choose.budget.request import Budget
from fxprune.choose.budget.schedules import Pooled, Schedule, Uniform, isomorphic, multiple_of, rounded
from fxprune.choose.budget.search import nearest
from fxprune.choose.budget.ties import Ties, held_by_ties, ties_of
from fxprune.choose.importance.score import Scores
from fxprune.errors import BudgetError

__all__ = ["Fitted", "fit"]

# How far from the request a result may be, as a share of the whole model.
TOLERANCE = {"params": 0.01, "macs": 0.01, "latency": 0.10}
ATTEMPTS = 6  # results that are measured, at most


@dataclass(frozen=True)
class Fitted:
    """counts: how many elements each group keeps.  floored: those that a floor kept from losing more."""

    counts: dict[Group, int]
    floored: tuple[Group, ...]


Left = Callable[[Fitted], float]


def fit(
    analysis: Analysis,
    groups: Sequence[Group],
    scores: Scores,
    budget: Budget,
    left: Left,
    beside: int = 0,
) -> Fitted:
    """Choose how many elements each group keeps.

    Args:
        left: measures on a result the share of the whole model's cost that a choice leaves; asked where
            the budget is one of parameters, MACs or time.
        beside: parameters of the result that its graph has not.

    Raises:
        BudgetError: no choice is near enough to the request; says which ratio is the nearest, and whether
            floors are the limit.
    """
    if budget.scope == "uniform" or not budget.own_code:
        return _fit(analysis, groups, scores, budget, left, beside, ranked_ties=False)
    try:
        return _fit(analysis, groups, scores, budget, left, beside, ranked_ties=True)
    except BudgetError:  # steps of all that is tied are too long: the code is edited where it must be
        return _fit(analysis, groups, scores, budget, left, beside, ranked_ties=False)


def _fit(
    analysis: Analysis,
    groups: Sequence[Group],
    scores: Scores,
    budget: Budget,
    left: Left,
    beside: int,
    *,
    ranked_ties: bool,
) -> Fitted:
    own = budget.overrides(analysis)
    free = [group for group in groups if group not in own]
    held = held_by_ties(analysis, free) if ranked_ties else set()
    if held and len(held) == len(free):
        raise BudgetError("all that may shrink is tied to what can't")
    free = [group for group in free if group not in held]
    ties: Ties = {group: {group: 1} for group in free}
    if budget.scope != "uniform" or budget.own_code:  # uniform shares are alike, but for what is rounded
        ties = ties_of(analysis, free, own_code=ranked_ties)
    schedule = _schedule(analysis, ties, scores, budget)
    given = _given(analysis, {group: own[group] for group in groups if group in own}, budget)
    given.counts.update({group: group.size for group in held})

    def with_given(counts: dict[Group, int], level: float) -> Fitted:
        floored = {*given.floored, *(g for first in schedule.floored(counts, level) for g in ties[first])}
        return Fitted(
            {**_spread(counts, ties), **given.counts}, tuple(group for group in groups if group in floored)
        )

    if budget.measure == "channels":
        return with_given(schedule.counts(budget.ratio), budget.ratio)
    cost = cost_of(analysis, budget.measure, beside)
    return _estimate_and_correct(
        schedule, _with(given.counts, ties, cost), cost({}), budget, with_given, left, beside
    )


def _given(analysis: Analysis, own: dict[Group, float], budget: Budget) -> Fitted:
    """Return what the groups with ratios of their own keep."""
    counts, floored = {}, []
    least = floors(analysis, list(own), Budget(floor=budget.floor))  # as of a plain budget
    for group, ratio in own.items():
        wanted, multiple = group.size * (1 - ratio), multiple_of(analysis, group, budget.round_to)
        counts[group] = rounded(max(wanted, least[group]), group.size, multiple)
        if rounded(wanted, group.size, multiple) < counts[group]:
            floored.append(group)
    return Fitted(counts, tuple(floored))


def _schedule(analysis: Analysis, ties: Ties, scores: Scores, budget: Budget) -> Schedule:
    if budget.scope == "uniform":
        return Uniform(analysis, ties, budget)
    if budget.scope == "isomorphic":
        return Pooled(analysis, ties, budget, scores, isomorphic(analysis), lambda group: 1.0)
    if budget.measure == "channels":
        return Pooled(analysis, ties, budget, scores, lambda group: "", lambda group: 1.0)
    cost = cost_of(analysis, budget.measure)
    return Pooled(analysis, ties, budget, scores, lambda group: "", lambda group: saving_of(group, cost))


def _spread(counts: Counts, ties: Ties) -> dict[Group, int]:
    """Return the counts of all groups, from those of the smallest of each that are tied."""
    return {group: n * times for first, n in counts.items() for group, times in ties[first].items()}


def _with(given: dict[Group, int], ties: Ties, cost: Cost) -> Cost:
    return lambda counts: cost({**_spread(counts, ties), **given})


def _estimate_and_correct(
    schedule: Schedule,
    cost: Cost,
    whole: float,
    budget: Budget,
    with_given: Callable[[dict[Group, int], float], Fitted],
    share_left: Left,
    beside: int,
) -> Fitted:
    """Estimate from axis sizes, build, measure, correct the estimate."""
    wanted, tolerance = 1 - budget.ratio, TOLERANCE[budget.measure]
    ask, best, tried = wanted, None, set()
    seen: list[tuple[float, float]] = []  # what was asked, and what was left
    for _ in range(ATTEMPTS):
        found = nearest(schedule, cost, ask * whole)
        key = tuple(found.counts.values())
        if key in tried:
            break
        tried.add(key)
        fitted = with_given(found.counts, found.level)
        left = share_left(fitted)
        if best is None or abs(left - wanted) < abs(best[0] - wanted):
            best = (left, fitted)
        if abs(left - wanted) <= tolerance / 4:  # not worth another result
            break
        seen.append((ask, left))
        ask = _corrected(seen, wanted, proportional=not beside)
    assert best is not None
    left, fitted = best
    if abs(left - wanted) > tolerance and not budget.on_the_way:
        raise _out_of_reach(budget, left, fitted, schedule)
    return fitted


def _corrected(seen: Sequence[tuple[float, float]], wanted: float, *, proportional: bool) -> float:
    """Return what to ask next: in proportion to the last answer; else between two that enclose the goal."""
    ask, left = seen[-1]
    below = max((pair for pair in seen if pair[1] < wanted), default=None)
    above = min((pair for pair in seen if pair[1] >= wanted), default=None)
    if proportional or below is None or above is None or below[0] >= above[0]:
        return min(1.0, ask * wanted / left)
    share = (wanted - below[1]) / (above[1] - below[1])
    return below[0] + share * (above[0] - below[0])


def _out_of_reach(budget: Budget, left: float, fitted: Fitted, schedule: Schedule) -> BudgetError:
    """Describe the nearest ratio that can be reached, and what stands in the way of the asked one."""
    nearest_ratio = f"ask for ratio={1 - left:.3f}"
    lowest = schedule.counts(1.0)
    if left > 1 - budget.ratio and all(fitted.counts[g] == count for g, count in lowest.items()):
        held = [g for g, count in lowest.items() if 1 < count < g.size or (count == g.size > 1)]
        floor = "the default floor" if budget.floor is None else f"floor={budget.floor!r}"
        if held and budget.floor != 1:
            return BudgetError(
                f"ratio={budget.ratio:g} of the {budget.measure} can't be met: {floor} is the limit, every "
                f"group is at its own; the nearest choice removes {1 - left:.3f} ({nearest_ratio}, or give a "
                f"lower floor=: floor=1 lets groups go down to one element; exclude= and ratios= hold others "
                f"up)"
            )
    return BudgetError(
        f"ratio={budget.ratio:g} of the {budget.measure} can't be met: the nearest choice removes "
        f"{1 - left:.3f} ({nearest_ratio}, or change floor=, round_to=, attention=, depth=, exclude= or "
        f"ratios=)"
    )
