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

    A block that chance leaves out has no groups, and without it others may go by other names.
    """
    record, names = pruned.record, dict[tuple[str, int], set[str]]()
    for name, sites in record.sites.items():
        for site in sites:
            names.setdefault((site.name, site.dim), set()).add(name)
    groups = {}
    for group in found.groups:
        shared = {name for site in group.sites for name in names.get((site.name, site.dim), ())}
        known = {name for name in shared if record.plan.groups[name].size == group.size}
        if group.name in known or len(known) == 1:
            groups[group.name] = record.plan.groups[group.name if group.name in known else known.pop()]
    return groups
