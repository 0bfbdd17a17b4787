"""Patterns over module names (`"blocks.0.*"`), and the groups that they reach."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence

from fxprune.analysis.analysis import Analysis, Group
from fxprune.errors import PatternError, listed
from fxprune.graph.tensors import is_inside, modules_around

__all__ = ["excluded_modules", "groups_touching", "groups_within"]


def groups_touching(analysis: Analysis, patterns: Sequence[str]) -> set[Group]:
    """Return groups with a weight in a module that matches, or in a child of one."""
    hit = excluded_modules(analysis, patterns)
    return {g for g in analysis.groups if any(is_inside(site.name, hit) for site in g.sites)}


def excluded_modules(analysis: Analysis, patterns: Sequence[str]) -> set[str]:
    """Return the modules that a pattern matches.  Raises PatternError where one matches none."""
    paths = _module_paths(analysis)
    hit: set[str] = set()
    for pattern in patterns:
        matched = set(fnmatch.filter(paths, pattern))
        if not matched:
            raise PatternError(
                f"exclude pattern {pattern!r} matches no module; modules are named like "
                f"{listed(map(repr, paths))}"
            )
        hit |= matched
    return hit


def groups_within(analysis: Analysis, pattern: str) -> list[Group]:
    """Return groups whose name matches, or whose weights all lie in modules that match.

    Raises PatternError where none of them may shrink.
    """
    hit = set(fnmatch.filter(_module_paths(analysis), pattern))
    found = [
        g
        for g in analysis.prunable
        if fnmatch.fnmatchcase(g.name, pattern) or all(is_inside(site.name, hit) for site in g.sites)
    ]
    if not found:
        names = [g.name for g in analysis.prunable]
        raise PatternError(
            f"ratios pattern {pattern!r} holds no prunable group; groups are named like "
            f"{listed(map(repr, names))}"
        )
    return found


def _module_paths(analysis: Analysis) -> list[str]:
    return list(dict.fromkeys(path for name in analysis.weights for path in modules_around(name)))
