"""Choose the groups that shrink, and check what is asked of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import networkx as nx

from fxprune.analysis.analysis import Analysis, Group
from fxprune.analysis.patterns import groups_touching, groups_within
from fxprune.choose.budget.request import Budget
from fxprune.errors import NothingPrunableError, OptionError, listed

__all__ = ["candidates", "refuse_unused_ratios"]


def candidates(analysis: Analysis, exclude: Sequence[str], attention: str, budget: Budget) -> list[Group]:
    """Choose the groups to shrink: of each product (heads x head_dim) one, so that its width shrinks once.

    "auto" takes heads only where the ratio alone says how many stay, and they are a whole number.

    Raises:
        PatternError: a pattern of `exclude` matches no module.
        NothingPrunableError: nothing is left to shrink.
    """
    excluded = groups_touching(analysis, exclude)
    own = budget.overrides(analysis)
    free = [g for g in analysis.prunable if g not in excluded]
    if not free and budget.ratio > 0:
        reasons = sorted({g.frozen.text for g in analysis.groups if g.frozen})
        raise NothingPrunableError(
            f"nothing can shrink: {len(analysis.prunable)} of {len(analysis.groups)} groups are prunable, "
            f"{len(excluded)} excluded; the rest is frozen ({'; '.join(reasons) or 'no weights'})"
        )
    products = nx.Graph()
    products.add_nodes_from(free)
    products.add_edges_from((g, p) for g in free for p in (*g.outer, *g.inner) if p not in excluded)
    chosen: set[Group] = set()
    for members in nx.connected_components(products):
        ratios = {g: own.get(g, budget.ratio if budget.plain else None) for g in members}
        chosen |= _one_factor(analysis, members, attention, ratios)
    return [g for g in free if g in chosen]


def refuse_unused_ratios(analysis: Analysis, groups: Sequence[Group], budget: Budget, attention: str) -> None:
    """Raise OptionError where a pattern of `ratios`, or the ratio itself, is for no group that shrinks."""
    left: set[Group] = {*groups}
    for pattern in reversed([*budget.ratios]):
        named = groups_within(analysis, pattern)
        if left.isdisjoint(named):
            names = listed(group.name for group in named)
            why = (
                "of several patterns the last holds: put the general ones first"
                if not {*groups}.isdisjoint(named)
                else f"exclude= keeps them whole, or attention={attention!r} shrinks the other factor"
            )
            raise OptionError(f"ratios={{{pattern!r}: ...}} has no effect on {names}: {why}")
        left -= {*named}
    if budget.ratios and not left and (budget.ratio != Budget().ratio or budget.measure != "channels"):
        raise OptionError(
            f"ratio={budget.ratio:g} has no effect: ratios= names every group that can shrink; leave one out"
        )


def _one_factor(
    analysis: Analysis, members: set[Group], attention: str, ratios: Mapping[Group, float | None]
) -> set[Group]:
    """Choose the outermost factors of coupled products (whole heads) or the innermost (head dims).

    The choice is between factors of about the same weights.  A depthwise multiplier inside a residual width
    is no head dim: it would leave most of what the width carries whole.
    """
    if len(members) == 1:
        return members
    outer = {g for g in members if not members & {*g.outer}}
    inner = {g for g in members if not members & {*g.inner}}
    whole = all(_leaves_a_whole_number(g.size, ratios[g]) for g in outer)
    if attention == "heads" or (attention == "auto" and whole):
        return outer
    if _carried(analysis, outer) > 2 * _carried(analysis, inner):
        return outer
    return inner


def _carried(analysis: Analysis, groups: set[Group]) -> int:
    """Count the elements of all weights that carry any of these groups."""
    weights = {analysis.names.get(site.name, site.name) for group in groups for site in group.sites}
    return sum(math.prod(axis.size for axis in analysis.weights[name]) for name in weights)


def _leaves_a_whole_number(size: int, ratio: float | None) -> bool:
    count = 0.0 if ratio is None else size * (1 - ratio)
    return count >= 1 - 1e-9 and math.isclose(count, round(count), abs_tol=1e-9)
