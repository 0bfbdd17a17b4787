"""Prune another capture of a model by the plan of its first one: that of train mode, or of another call."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from fxprune.analysis.analysis import Analysis
from fxprune.compiler.rewrite import rewrite
from fxprune.graph.tensors import named_tensors
from fxprune.result.plan import Kept
from fxprune.result.pruned_module import PrunedModule

__all__ = ["by_same_plan"]


def by_same_plan(model: nn.Module, found: Analysis, pruned: PrunedModule) -> PrunedModule:
    """Rewrite what an analysis found in a model as a pruned graph of it was.

    Raises:
        ValueError: weights of both are pruned otherwise.
        PlanError: the plan does not fit.
    """
    graph = rewrite(model, found, replace(pruned.record.plan, groups=_groups(found, pruned)))
    own = dict(named_tensors(graph))
    for name, t in named_tensors(pruned):
        if name in own and (own[name].shape != t.shape or not torch.allclose(own[name], t)):
            raise ValueError(f"{name} is pruned otherwise")
    return graph


def _groups(found: Analysis, pruned: PrunedModule) -> dict[str, Kept]:
    """Choose what another graph's groups keep: as those of a plan by name, or by weights that they share.

    A block that chance leaves out has no groups, and without it others may go by other names.  At one site,
    what a group of the plan keeps is for one other: a head dim may be as large as the heads that it prunes.
    """
    record, names = pruned.record, dict[tuple[str, int], set[str]]()
    for name, sites in record.sites.items():
        for site in sites:
            names.setdefault((site.name, site.dim), set()).add(name)
    groups, taken = {}, set[tuple[str, str, int]]()
    by_name = {group.name: {(site.name, site.dim) for site in group.sites} for group in found.groups}
    sizes = {group.name: group.size for group in found.groups}

    def is_other(item: tuple[str, set[tuple[str, int]]]) -> tuple[bool, int]:
        name, places = item
        return not any(name in names.get(place, ()) for place in places), -len(places & names.keys())

    for own, places in sorted(by_name.items(), key=is_other):
        shared = {name for place in places for name in names.get(place, ())}
        known = {name for name in shared if record.plan.groups[name].size == sizes[own]}
        known = {name for name in known if not any((name, *place) in taken for place in places)}
        if own in known or len(known) == 1:
            chosen = own if own in known else known.pop()
            groups[own] = record.plan.groups[chosen]
            taken |= {(chosen, *place) for place in places}
    return groups
