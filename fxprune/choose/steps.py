"""Pruning in steps: a little, then the user's training, then scores of the smaller model, and again.

Every step selects from the original's groups, so that the plan stays one; what has gone stays gone, and
what was trained is carried over into the next, smaller model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor, nn

from fxprune.analysis.analysis import Analysis, Group
from fxprune.analysis.analyze import analyzed
from fxprune.choose.importance.score import Scores
from fxprune.choose.planned import options_behind
from fxprune.graph.tensors import device_of, is_float
from fxprune.result.forms import PrunedModel, with_record
from fxprune.result.pruned_module import PrunedModule, plan_of, record_of
from fxprune.result.refitted import Refit
from fxprune.rules.axes import atoms_of

__all__ = ["Between", "carry_over", "scores_of_the_rest"]

Between = Callable[[PrunedModel, int], None]
IdleKept = Mapping[str, tuple[np.ndarray | None, ...]]  # weight -> what is kept of each dimension
_NONE: IdleKept = MappingProxyType({})
Judge = Callable[[Analysis, Sequence[Group]], Scores]


def scores_of_the_rest(
    analysis: Analysis,
    groups: Sequence[Group],
    before: Scores,
    pruned: PrunedModule,
    judge: Judge,
) -> Scores:
    """Return what the smaller model says of the elements that it still has; those that went have -inf."""
    plan = plan_of(pruned)
    device = device_of(pruned)  # what whole numbers there are say which places and sizes
    example = pruned.record.example.map(
        lambda t: torch.zeros_like(t, device=device) if is_float(t) else t.to(device)
    )
    options = replace(options_behind(pruned, analysis.rules), capture="auto")
    smaller = analyzed(pruned, example, options)
    left = {group: there for group in groups if (there := _counterpart(analysis, group, smaller)) is not None}
    found = judge(smaller, list(dict.fromkeys(left.values())))
    scores = {}
    for group in groups:
        choice = plan.groups.get(group.name)
        kept = np.arange(group.size) if choice is None else choice.indices.numpy()
        kept = np.broadcast_to(kept, (*before[group].shape[:-1], kept.shape[-1]))
        values = found[left[group]] if group in left else np.take_along_axis(before[group], kept, -1)
        scores[group] = np.full(before[group].shape, -np.inf)
        np.put_along_axis(scores[group], kept, np.broadcast_to(values, kept.shape), -1)
    return scores


def _counterpart(analysis: Analysis, group: Group, smaller: Analysis) -> Group | None:
    """Return the group of the smaller model that stands at the same place in the same weight."""
    for site in group.sites:
        name = smaller.names.get(site.name)
        if name is None:
            continue
        own = list(atoms_of(analysis.axis(site)))
        theirs = list(atoms_of(smaller.weights[name][site.dim]))
        if len(own) == len(theirs):
            found = smaller.by_atom.get(theirs[own.index(group.atom)])
            return found if found is not None and found.frozen is None else None
    return None


def carry_over(
    trained: nn.Module, smaller: nn.Module, before: IdleKept = _NONE, after: IdleKept = _NONE
) -> None:
    """Copy into the smaller model those of the trained weights that it keeps.

    What was solved again and not trained since stays known as that.

    before, after: what either keeps of weights that no graph, and so no plan, knows of.
    """
    old, new = record_of(trained), record_of(smaller)
    values, refit = trained.state_dict(), {}
    with torch.no_grad():
        for name, tensor in smaller.state_dict().items():
            if not isinstance(tensor, torch.Tensor):  # a module's extra state
                continue
            value = _times(values[name], old.folded.get(name), inverse=True)
            whole = (None,) * tensor.ndim
            was = old.plan.kept.get(name) or _tensors(before.get(name, whole))
            value = _kept_of(value, was, new.plan.kept.get(name) or _tensors(after.get(name, whole)))
            value = _times(value, new.folded.get(name))
            if value.shape != tensor.shape:  # what its own axes say nothing of
                continue
            tensor.copy_(value)
            done = old.plan.refit.get(name)
            if done is not None and done.is_of(values[name]):
                refit[name] = Refit.of(tensor, done.ridge, done.before, done.after)
    if refit:
        plan = replace(new.plan, refit=refit, samples=old.plan.samples)
        with_record(smaller, lambda record: replace(record, plan=plan))


def _times(tensor: Tensor, fold: tuple[Tensor, float] | None, *, inverse: bool = False) -> Tensor:
    """Multiply the factor of a folded scale into its rows, or out of them."""
    if fold is None:
        return tensor
    rows, factor = fold
    scaled = tensor.clone()
    scaled[rows.to(tensor.device)] *= 1 / factor if inverse else factor
    return scaled


def _tensors(kept: tuple[np.ndarray | None, ...]) -> list[Tensor | None]:
    return [None if places is None else torch.from_numpy(places) for places in kept]


def _kept_of(tensor: Tensor, old: Sequence[Tensor | None], new: Sequence[Tensor | None]) -> Tensor:
    for dim, (before, after) in enumerate(zip(old, new, strict=True)):
        if after is None:
            continue
        places = after if before is None else torch.searchsorted(before, after)
        tensor = tensor.index_select(dim, places.to(tensor.device))
    return tensor
