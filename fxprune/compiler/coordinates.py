"""Bring a model and a decision on it to the coordinates that were chosen for it."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from fxprune.analysis.analysis import Analysis
from fxprune.analysis.freedom.regions import Freedom
from fxprune.choose.decide import Decision
from fxprune.choose.importance.soft_masks import SoftMasked
from fxprune.choose.planned import as_planned
from fxprune.compiler.rebase import rebased
from fxprune.graph.tensors import tensor_at
from fxprune.result.forms import graph_form, with_record
from fxprune.result.pruned_module import plan_of
from fxprune.result.refitted import Refit
from fxprune.rules.calls import weight_name

__all__ = ["in_chosen_bases", "scale_norms"]


def in_chosen_bases(decision: Decision, model: nn.Module, analysis: Analysis) -> tuple[Decision, nn.Module]:
    """Return the decision on the model in other coordinates, and the model; as they are where none change.

    analysis: of the model, with all its branches.
    """
    if decision.chosen is None:
        return decision, model
    counts = {name: kept.count for name, kept in decision.plan.groups.items()}
    bases = decision.chosen.matrices(counts)
    other, found = rebased(model, analysis, bases)
    plan = replace(decision.plan, bases=bases)
    return replace(decision, plan=plan, analysis=as_planned(found, plan)), other


def scale_norms(analysis: Analysis, result: nn.Module) -> None:
    """Scale the weights of norms over k of a stream's n coordinates by sqrt(n / k), in place; record it.

    The coordinates that went were small, so that the others are nearly as long as all were.  A norm brings n
    of them to the length sqrt(n), and k to sqrt(k): the factor makes what is left as long as it was.
    """
    plan, pruned = plan_of(result), graph_form(result)
    groups = [
        g
        for g in analysis.groups
        if g.name in plan.groups and g.freedom is Freedom.ROTATION and {*g.bases} & plan.bases.keys()
    ]
    scaled: dict[str, Refit] = {}
    for node, uses in SoftMasked(analysis, groups).statistics.items():
        step = analysis.steps[node]
        assert step.rule is not None
        name = weight_name(step.bound.get("weight"))
        new = plan.renamed.get(name, name) if name else None
        if new is None or new in scaled:
            continue
        tensor = tensor_at(pruned, new)
        assert isinstance(tensor, Tensor)
        ratio = 1.0
        for use in uses:
            kept = plan.groups[use.group.name]
            ratio *= (kept.size / kept.count) ** 0.5
        with torch.no_grad():
            tensor.mul_(ratio)
        # No ridge and no errors: it is recorded as re-fit, so that `verify` knows it, but nothing was solved.
        scaled[new] = Refit.of(tensor, float("inf"), 0.0, 0.0)
    if scaled:
        with_record(
            result, lambda record: replace(record, plan=replace(plan, refit={**plan.refit, **scaled}))
        )
