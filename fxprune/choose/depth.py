"""Depth: which residual branches go, and the analysis of the graph without them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

import numpy as np

from fxprune.analysis.analysis import Analysis
from fxprune.analysis.branches import Branch, Removal, find_branches, pairs
from fxprune.analysis.patterns import excluded_modules
from fxprune.choose.importance.branches import branch_divergences, branch_shares
from fxprune.errors import NothingPrunableError, OptionError, ScoreError, shown
from fxprune.graph.nests import Value
from fxprune.graph.tensors import is_inside
from fxprune.passes.shrinking.remove_branches import remove_branches

__all__ = ["BRANCH_OPTIONS", "branch_scores", "check_depth", "drop_branches", "without_branches"]

UNITS = ("branch", "block")
Unit = tuple[Branch, ...]  # branches that go together
Choices = dict[int, tuple[float, tuple[int, ...]]]  # how many units -> the sum of scores, and which

BRANCH_OPTIONS = {"log_probabilities", "progress"}  # of `branch_divergences`


def check_depth(depth: float, unit: str) -> None:
    if isinstance(depth, bool) or not isinstance(depth, (int, float)) or not 0 <= depth < 1:
        raise OptionError(f"depth={shown(depth)}: the fraction of branches to remove must be in [0, 1)")
    if unit not in UNITS:
        raise OptionError(f"unit={shown(unit)}: one of {', '.join(map(repr, UNITS))}")


def drop_branches(
    analysis: Analysis,
    depth: float,
    unit: str = "branch",
    data: Iterable[Value] | None = None,
    exclude: Sequence[str] = (),
    options: dict[str, Value] | None = None,
) -> Analysis:
    """Choose a fraction of the residual branches, and return the analysis of the graph without them.

    With data the units that go are those whose removal, each alone, changes the predictions least (the
    paper's block importance); without, those that are smallest beside their stream, a stand-in.  Pairs
    of branches overlap (attention and FFN, FFN and attention): of all choices without overlap, the one
    with the least sum.  At least one unit stays.

    Raises:
        NothingPrunableError: the model has no residual branch that can be removed.
        OptionError: so small a fraction of so few branches is none.
    """
    if depth == 0:
        return analysis
    modules = excluded_modules(analysis, exclude)
    branches = find_branches(analysis.module, analysis.rules)
    free = [b for b in branches if not any(is_inside(name, modules) for name in b.weights)]
    units: list[Unit] = [(b,) for b in free]
    if unit == "block":
        units = [pair for pair in pairs(branches) if {*pair} <= {*free}]
    if not units:
        raise NothingPrunableError(
            f"depth={depth}: no residual {unit} can be removed: {len(branches)} of the model's additions are "
            f"residual branches, {len(branches) - len(free)} of them excluded"
        )
    overlaps = _overlaps(units)
    count = _count(depth, overlaps)
    if not count:
        raise OptionError(
            f"depth={depth}: that is no whole {unit} of the {len(units)} that can be removed (one stays)"
        )
    scores = branch_scores(analysis, units, data, options)
    least = _least(scores.tolist(), overlaps, count)
    chosen = {branch for i in least for branch in units[i]}
    return without_branches(analysis, [b for b in branches if b in chosen])


def branch_scores(
    analysis: Analysis,
    units: Sequence[Unit],
    data: Iterable[Value] | None,
    options: dict[str, Value] | None = None,
) -> np.ndarray:
    """Score how much each unit matters: float64 [units]; the lowest go first."""
    if data is None:
        return branch_shares(analysis, units)
    scores = branch_divergences(analysis, units, data, **(options or {}))
    if not np.isfinite(scores).all():
        name = units[int(np.flatnonzero(~np.isfinite(scores))[0])][0].name
        raise ScoreError(f"{name}: the divergence without it is NaN or infinite")
    return scores


def without_branches(analysis: Analysis, branches: Sequence[Branch]) -> Analysis:
    """Return the analysis of the graph without some of its own branches."""
    if not branches:
        return analysis
    shorter = remove_branches(analysis.module, branches=branches)
    return analysis.on(shorter, removal=Removal(analysis.module, shorter, tuple(branches)))


# ---------------------------------------------------------------- which units


def _count(depth: float, overlaps: Sequence[bool]) -> int:
    """Return the fraction, half up, of as many units as there are without overlap; one of them stays."""
    fit = before = 0  # before: whether the last unit was counted
    for overlap in overlaps:
        before = 0 if overlap and before else 1
        fit += before
    return max(0, min(int(depth * fit + 0.5), fit - 1))


def _overlaps(units: Sequence[Unit]) -> list[bool]:
    """Does each unit share a branch with the one before it?"""
    return [False, *(not {*a}.isdisjoint(b) for a, b in itertools.pairwise(units))]


def _least(scores: Sequence[float], overlaps: Sequence[bool], count: int) -> tuple[int, ...]:
    """Return the `count` units with the least sum of scores of which no two overlap."""
    nothing: Choices = {0: (0.0, ())}
    before, last = nothing, nothing  # the best choices of each size, up to the last unit but one, and to it
    for i, (score, overlap) in enumerate(zip(scores, overlaps, strict=True)):
        best = dict(last)
        for size, (total, chosen) in (before if overlap else last).items():
            taken = (total + score, (*chosen, i))
            if size < count and (size + 1 not in best or taken[0] < best[size + 1][0]):
                best[size + 1] = taken
        before, last = last, best
    return last[count][1]
