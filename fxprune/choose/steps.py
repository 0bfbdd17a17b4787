"""Pruning in steps: a little, then the user's training, then scores of the smaller model, and again.

Every step selects from the original's groups, so that the plan stays one; what has gone stays gone, and
what was trained is carried over into the next, smaller model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from fxprune.analysis.analysis import Analysis, Group
from fxprune.axes import atoms_of
from fxprune.choose.budget import Budget
from fxprune.choose.budget.fit import Rewrite, fit
from fxprune.choose.importance.score import Scores
from fxprune.graph.tensors import device_of
from fxprune.plan.plan import Plan, plan_of
from fxprune.result.pruned_module import PrunedModule

__all__ = ["Between", "in_steps"]

Between = Callable[[PrunedModule, int], None]
Judge = Callable[[Analysis, Sequence[Group]], Scores]


def in_steps(
    model: nn.Module,
    analysis: Analysis,
    groups: Sequence[Group],
    judge: Judge,
    budget: Budget,
    rewrite: Rewrite,
    analyze: Callable[..., Analysis],
    steps: int,
    between: Between | None,
) -> PrunedModule:
    """Step k of n removes k/n of the ratio.  The last step's result is not trained."""
    scores = judge(analysis, groups)
    pruned = fit(model, analysis, groups, scores, _part(budget, 1 / steps), rewrite)
    for step in range(2, steps + 1):
        if between is not None:
            between(pruned, step - 1)
        scores = _scores_of_the_rest(analysis, groups, scores, pruned, judge, analyze)
        smaller = fit(model, analysis, groups, scores, _part(budget, step / steps), rewrite)
        _carry_over(pruned, smaller)
        pruned = smaller
    return pruned


def _part(budget: Budget, share: float) -> Budget:
    own = {pattern: ratio * share for pattern, ratio in budget.ratios.items()}
    return replace(budget, ratio=budget.ratio * share, ratios=own)


def _scores_of_the_rest(
    analysis: Analysis,
    groups: Sequence[Group],
    before: Scores,
    pruned: PrunedModule,
    judge: Judge,
    analyze: Callable[..., Analysis],
) -> Scores:
    """What the smaller model says of the elements that it still has; those that went have -inf."""
    plan = plan_of(pruned)
    example = pruned.meta["fxprune"]["example"].map(lambda t: torch.zeros_like(t, device=device_of(pruned)))
    smaller = analyze(pruned, example_inputs=example.args, example_kwargs=example.kwargs)
    twins = {group: twin for group in groups if (twin := _twin(analysis, group, smaller)) is not None}
    found = judge(smaller, list(dict.fromkeys(twins.values())))
    scores = {}
    for group in groups:
        choice = plan.groups.get(group.name)
        kept = np.arange(group.size) if choice is None else choice.indices.numpy()
        kept = np.broadcast_to(kept, (*before[group].shape[:-1], kept.shape[-1]))
        values = found[twins[group]] if group in twins else np.take_along_axis(before[group], kept, -1)
        scores[group] = np.full(before[group].shape, -np.inf)
        np.put_along_axis(scores[group], kept, np.broadcast_to(values, kept.shape), -1)
    return scores


def _twin(analysis: Analysis, group: Group, smaller: Analysis) -> Group | None:
    """The group of the smaller model that stands at the same place in the same weight."""
    for site in group.sites:
        name = smaller.names.get(site.name)
        if name is None:
            continue
        own = list(atoms_of(analysis.axis(site)))
        theirs = list(atoms_of(smaller.weights[name][site.dim]))
        if len(own) == len(theirs):
            twin = smaller.by_atom.get(theirs[own.index(group.atom)])
            return twin if twin is not None and twin.frozen is None else None
    return None


def _carry_over(trained: PrunedModule, smaller: PrunedModule) -> None:
    """Of the trained weights those that the smaller model keeps."""
    old, new = plan_of(trained), plan_of(smaller)
    values = trained.state_dict()
    with torch.no_grad():
        for name, tensor in smaller.state_dict().items():
            tensor.copy_(_kept_of(values[name], name, old, new))


def _kept_of(tensor: Tensor, name: str, old: Plan, new: Plan) -> Tensor:
    for dim in range(tensor.ndim):
        before, after = (plan.kept.get(name, (None,) * tensor.ndim)[dim] for plan in (old, new))
        if after is None:
            continue
        places = after if before is None else torch.searchsorted(before, after)
        tensor = tensor.index_select(dim, places.to(tensor.device))
    return tensor
