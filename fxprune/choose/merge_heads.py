"""`attention="merge"`: consecutive heads become one, and its channels are pruned together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fxprune.analysis.analysis import Analysis, Group
from fxprune.analysis.patterns import excluded_modules
from fxprune.errors import OptionError, PlanError
from fxprune.graph.tensors import is_inside
from fxprune.passes.shrinking.regroup_heads import head_dims, regroup_heads

__all__ = ["mergeable", "merged", "merged_by_name", "merged_for_ratio"]


def merged_for_ratio(analysis: Analysis, ratio: float, exclude: Sequence[str] = ()) -> Analysis:
    """Return the analysis of the model with `1 - ratio` of its heads, each as much wider.

    Attention whose weights carry heads or head dims alone (a bias per head, query norms) stays as it is.

    Raises:
        OptionError: a number of heads that would be left is no divisor of what there is.
    """
    modules = excluded_modules(analysis, exclude)
    counts = {}
    if not any(group.role == "heads" for group in analysis.groups):
        raise OptionError("attention='merge': no attention with heads that can shrink was found in the model")
    for group in mergeable(analysis):
        if any(is_inside(site.name, modules) for site in group.sites):
            continue
        left = group.size * (1 - ratio)
        count = round(left)
        if abs(left - count) > 1e-9 or count < 1 or group.size % count:
            ratios = [f"{1 - n / group.size:.4g}" for n in range(1, group.size) if group.size % n == 0]
            raise OptionError(
                f"attention='merge': ratio={ratio} leaves {left:.4g} of the {group.size} heads of "
                f"{group.name}, and {group.size} heads merge evenly at a ratio of {', '.join(ratios) or '0'}"
            )
        counts[group] = count
    return merged(analysis, counts)


def mergeable(analysis: Analysis) -> list[Group]:
    """Return the groups of heads that can be regrouped."""
    return [g for g in analysis.prunable if g.role == "heads" and head_dims(analysis, g)]


def merged(analysis: Analysis, counts: Mapping[Group, int]) -> Analysis:
    """Return the analysis of the graph in which groups of heads have fewer, wider heads."""
    fewer = {group: count for group, count in counts.items() if count < group.size}
    if not fewer:
        return analysis
    names = {group.name: count for group, count in fewer.items()}
    return analysis.on(regroup_heads(analysis, counts=fewer), regrouped=names)


def merged_by_name(analysis: Analysis, counts: Mapping[str, int]) -> Analysis:
    """Return the same for a plan's names.  Raises PlanError for a name or a number that does not fit."""
    known = {group.name: group for group in mergeable(analysis)} if counts else {}
    for name, count in counts.items():
        if name not in known or not 1 <= count <= known[name].size or known[name].size % count:
            raise PlanError(f"the plan is for another model: {name!r} can't be merged to {count} heads here")
    return merged(analysis, {known[name]: count for name, count in counts.items()})
