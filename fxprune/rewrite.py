"""Rewrite: slice the weights, write the new sizes, attach the record."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import fx, nn

from fxprune.analysis.analysis import Analysis, Site
from fxprune.analysis.analyze import analyze
from fxprune.analysis.branches import find_branches
from fxprune.choose.depth import without_branches
from fxprune.choose.merge_heads import merged_by_name
from fxprune.errors import (
    PlanError,
)
from fxprune.graph.values import refuse_broken
from fxprune.passes.shrinking.fold_scale import fold_scales
from fxprune.passes.shrinking.rename import rename
from fxprune.passes.shrinking.shrink import shrink
from fxprune.plan.plan import Plan
from fxprune.plan.selection import Selection
from fxprune.result.origin import origin_of
from fxprune.result.pruned_module import PrunedModule

__all__ = ["apply", "as_planned"]


def apply(model: nn.Module, plan: Plan, **options: Any) -> fx.GraphModule:
    """Prune a model of the same architecture by an existing plan.

    `options`: `example_inputs`, `example_kwargs`, `outputs`, `split_qkv`, `capture`, `rules` as of `prune`.

    Raises:
        PlanError: the plan is for another model; names the group that does not fit.
    """
    analysis = as_planned(analyze(model, **options), plan)
    return _rewrite(model, analysis, Selection.from_plan(analysis, plan), plan.renamed, plan.scales)


def _rewrite(
    model: nn.Module,
    analysis: Analysis,
    selection: Selection,
    renamed: dict[str, str] | None = None,
    scales: dict[str, float] | None = None,
) -> PrunedModule:
    """Slice the weights, write the new sizes, and attach the record."""
    example = analysis.captured.example
    pruned = shrink(analysis, selection, model)
    refuse_broken(pruned, example)
    folded = fold_scales(pruned, scales or {}, example)
    pruned = rename(pruned, renamed) if renamed else pruned
    plan, new = selection.plan(analysis, model.state_dict()), renamed or {}
    sites = {
        group.name: [Site(new.get(site.name, site.name), site.dim) for site in group.sites]
        for group in analysis.groups
        if group.atom in selection.masks
    }
    pruned.meta["fxprune"] |= {
        "plan": replace(plan, renamed=new, scales=scales or {}, regrouped=analysis.regrouped),
        "folded": {new.get(name, name): fold for name, fold in folded.items()},
        "capture": analysis.capture,
        "outputs": "prune" if analysis.inference.prune_outputs else "keep",
        "split_qkv": analysis.captured.split_qkv,
        "sites": sites,
        "dynamic": not analysis.captured.fixed_batch,
        "origin": origin_of(model, analysis.module),
        "example": example.map(lambda t: torch.empty_like(t, device="meta")),
    }
    return pruned


def as_planned(analysis: Analysis, plan: Plan) -> Analysis:
    """The analysis of the graph that a plan's groups are of.

    Raises:
        PlanError: the model has no branch of a name that the plan removes.
    """
    analysis = merged_by_name(analysis, plan.regrouped)
    if not plan.removed:
        return analysis
    known = {b.name: b for b in find_branches(analysis.module, analysis.inference.rules)}
    for name in plan.removed:
        if name not in known:
            raise PlanError(f"the plan is for another model: this one has no residual branch {name!r}")
    return without_branches(analysis, [known[name] for name in plan.removed])
