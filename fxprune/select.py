"""Which groups shrink, to how many elements, and which those are."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterable, Sequence

import networkx as nx
import numpy as np
import torch

from fxprune.analysis import Analysis, Group
from fxprune.axes import Product
from fxprune.errors import NothingPrunableError, PatternError
from fxprune.importance import Scores
from fxprune.selection import Selection, rounded

__all__ = ["best_of", "candidates", "excluded_modules", "is_within", "select"]


def candidates(analysis: Analysis, exclude: Sequence[str], attention: str, ratio: float) -> list[Group]:
    """The groups to shrink: of each product (heads x head_dim) one factor, so that its width shrinks once.

    Raises:
        PatternError: a pattern of `exclude` matches no module.
        NothingPrunableError: nothing is left to shrink.
    """
    excluded = _excluded(analysis, exclude)
    free = [g for g in analysis.prunable if g not in excluded]
    if not free and ratio > 0:
        reasons = sorted({g.frozen.text for g in analysis.groups if g.frozen})
        raise NothingPrunableError(
            f"nothing can shrink: {len(analysis.prunable)} of {len(analysis.groups)} groups are prunable, "
            f"{len(excluded)} excluded; the rest must stay whole ({'; '.join(reasons) or 'no weights'})"
        )
    products = nx.Graph()
    products.add_nodes_from(free)
    products.add_edges_from((g, p) for g in free for p in (*g.outer, *g.inner) if p not in excluded)
    chosen: set[Group] = set()
    for members in nx.connected_components(products):
        chosen |= _one_factor(analysis, members, attention, ratio)
    return [g for g in free if g in chosen]


def _one_factor(analysis: Analysis, members: set[Group], attention: str, ratio: float) -> set[Group]:
    """Of coupled products: their outermost factors (whole heads) or their innermost ones (head dims).

    The choice is between factors of about the same weights.  A depthwise multiplier inside a residual width
    is no head dim: it would leave most of what the width carries whole.
    """
    if len(members) == 1:
        return members
    outer = {g for g in members if not members & {*g.outer}}
    inner = {g for g in members if not members & {*g.inner}}
    whole = all(_is_whole(g.size * (1 - ratio)) for g in outer)
    if attention == "heads" or (attention == "auto" and whole):
        return outer
    if _carried(analysis, outer) > 2 * _carried(analysis, inner):
        return outer
    return inner


def _carried(analysis: Analysis, groups: set[Group]) -> int:
    """How many elements the weights have that carry any of these groups."""
    weights = {analysis.names.get(site.name, site.name) for group in groups for site in group.sites}
    return sum(math.prod(axis.size for axis in analysis.weights[name]) for name in weights)


def _is_whole(count: float) -> bool:
    return count >= 1 - 1e-9 and math.isclose(count, round(count), abs_tol=1e-9)


def _excluded(analysis: Analysis, patterns: Sequence[str]) -> set[Group]:
    """Groups with a weight in a module that matches, or in a child of one."""
    hit = excluded_modules(analysis, patterns)
    return {g for g in analysis.groups if any(is_within(site.name, hit) for site in g.sites)}


def excluded_modules(analysis: Analysis, patterns: Sequence[str]) -> set[str]:
    """The modules that a pattern matches.  Raises PatternError where one matches none."""
    paths = _module_paths(analysis)
    hit: set[str] = set()
    for pattern in patterns:
        matched = set(fnmatch.filter(paths, pattern))
        if not matched:
            raise PatternError(
                f"exclude pattern {pattern!r} matches no module; modules are named like {_some(paths)}"
            )
        hit |= matched
    return hit


def _module_paths(analysis: Analysis) -> list[str]:
    paths: dict[str, None] = {}
    for name in analysis.weights:
        parts = name.split(".")[:-1]
        for i in range(1, len(parts) + 1):
            paths[".".join(parts[:i])] = None
    return list(paths)


def _some(paths: Iterable[str]) -> str:
    return ", ".join(repr(p) for p in list(paths)[:3])


def is_within(name: str, modules: set[str]) -> bool:
    """Does a weight lie in one of the modules, or in a child of one?"""
    parts = name.split(".")[:-1]
    return any(".".join(parts[:i]) in modules for i in range(1, len(parts) + 1))


def select(
    analysis: Analysis, groups: Sequence[Group], scores: Scores, ratio: float, round_to: int
) -> Selection:
    """Keep the highest-scored `1 - ratio` of each group; ties keep the first."""
    kept = {}
    for group in groups:
        count = rounded(group.size * (1 - ratio), group.size, _multiple(analysis, group, round_to))
        if count < group.size:
            kept[group] = torch.from_numpy(best_of(scores[group], count))
    return Selection.of(analysis, kept)


def best_of(scores: np.ndarray, count: int) -> np.ndarray:
    """The positions of the highest scores along the last dimension, sorted; ties keep the first."""
    order = np.argsort(-scores, axis=-1, kind="stable")[..., :count]
    return np.sort(order, axis=-1)


def _multiple(analysis: Analysis, group: Group, round_to: int) -> int:
    """What the count must be a multiple of, so that the widths that it is a factor of are of `round_to`."""
    others = [
        axis.size // group.size
        for site in group.sites
        for axis in [analysis.axis(site)]
        if isinstance(axis, Product) or axis is group.atom
    ]
    return round_to // math.gcd(round_to, math.gcd(*others)) if others else round_to
