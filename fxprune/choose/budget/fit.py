"""From a request and scores to a pruned model that meets the request, measured on the model itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from fxprune.analysis.analysis import Analysis, Group
from fxprune.choose.best import select
from fxprune.choose.budget.costs import Cost, cost_of, saving_of
from fxprune.choose.budget.request import Budget, Latency
from fxprune.choose.budget.schedules import Pooled, Schedule, Uniform, isomorphic, rounded
from fxprune.choose.budget.schedules import multiple_of as multiple
from fxprune.choose.budget.search import nearest
from fxprune.choose.importance.score import Scores
from fxprune.errors import BudgetError
from fxprune.plan.selection import Selection
from fxprune.result.measure import latency_ratio, macs_of, on_meta, parameters_of, twin_of
from fxprune.result.pruned_module import PrunedModule, noise_for

__all__ = ["fit"]

Rewrite = Callable[[Selection], PrunedModule]

# How far from the request a result may be, as a share of the whole model.
TOLERANCE = {"params": 0.01, "macs": 0.01, "latency": 0.10}
ATTEMPTS = 6


def fit(
    model: nn.Module,
    analysis: Analysis,
    groups: Sequence[Group],
    scores: Scores,
    budget: Budget,
    rewrite: Rewrite,
) -> PrunedModule:
    """Choose how many elements each group keeps, keep the best of them, rewrite.

    Raises:
        BudgetError: no choice is near enough to the request; says which ratio is the nearest.
    """
    own = budget.overrides(analysis)
    shared = [group for group in groups if group not in own]
    schedule = _schedule(analysis, shared, scores, budget)
    given = {
        group: rounded(group.size * (1 - own[group]), group.size, multiple(analysis, group, budget.round_to))
        for group in groups
        if group in own
    }

    def build(counts: dict[Group, int]) -> PrunedModule:
        return rewrite(select(analysis, scores, counts | given))

    if budget.measure == "channels":
        return build(schedule.counts(budget.ratio))
    cost = cost_of(analysis, budget.measure)
    return _approach(schedule, _with(given, cost), cost({}), budget, build, _measure(model, budget))


def _schedule(analysis: Analysis, groups: Sequence[Group], scores: Scores, budget: Budget) -> Schedule:
    if budget.scope == "uniform":
        return Uniform(analysis, groups, budget)
    if budget.scope == "isomorphic":
        return Pooled(analysis, groups, budget, scores, isomorphic(analysis), lambda group: 1.0)
    if budget.measure == "channels":
        return Pooled(analysis, groups, budget, scores, lambda group: "", lambda group: 1.0)
    cost = cost_of(analysis, budget.measure)
    return Pooled(analysis, groups, budget, scores, lambda group: "", lambda group: saving_of(group, cost))


def _with(given: dict[Group, int], cost: Cost) -> Cost:
    return lambda counts: cost({**counts, **given})


def _approach(
    schedule: Schedule,
    cost: Cost,
    whole: float,
    budget: Budget,
    build: Callable[[dict[Group, int]], PrunedModule],
    share_left: Callable[[PrunedModule], float],
) -> PrunedModule:
    """Ask the axes for a share, measure what comes out, ask again for what is missing."""
    wanted, tolerance = 1 - budget.ratio, TOLERANCE[budget.measure]
    ask, best, tried = wanted, None, set()
    for _ in range(ATTEMPTS):
        found = nearest(schedule, cost, ask * whole)
        key = tuple(found.counts.values())
        if key in tried:
            break
        tried.add(key)
        pruned = build(found.counts)
        left = share_left(pruned)
        if best is None or abs(left - wanted) < abs(best[0] - wanted):
            best = (left, pruned)
        if abs(left - wanted) <= tolerance / 4:
            break
        ask = min(1.0, ask * wanted / left)
    assert best is not None
    left, pruned = best
    if abs(left - wanted) > tolerance:
        raise BudgetError(
            f"ratio={budget.ratio:g} of the {budget.measure} can't be met: the nearest choice removes "
            f"{1 - left:.3f} (ask for ratio={1 - left:.3f}, or change floor=, round_to=, attention=, "
            f"exclude= or ratios=)"
        )
    return pruned


def _measure(model: nn.Module, budget: Budget) -> Callable[[PrunedModule], float]:
    """The share of the model's cost that a pruned model is left with, counted or timed on both."""
    if budget.measure == "params":
        return lambda pruned: parameters_of(pruned) / parameters_of(model)
    dense = twin_of(model)
    if budget.measure == "macs":
        whole: list[float] = []  # counted once, when the example is known

        def counted(pruned: PrunedModule) -> float:
            example = noise_for(pruned, model, 1)
            if not whole:
                whole.append(macs_of(dense, example))
            return macs_of(twin_of(pruned), example) / whole[0]

        return counted
    how = budget.target if isinstance(budget.target, Latency) else Latency()
    if on_meta(model):
        raise BudgetError("target='latency': a model on the meta device takes no time; use target='macs'")

    def timed(pruned: PrunedModule) -> float:
        example = noise_for(pruned, model, how.batch)
        return latency_ratio(dense, twin_of(pruned), example, threads=how.threads, rounds=how.rounds)

    return timed
