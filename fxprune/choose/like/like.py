"""The shape of a smaller model: which branches go, how wide the rest gets, and what it is called there."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import fx, nn

from fxprune.analysis.analysis import Analysis
from fxprune.analysis.analyze import AnalysisOptions, analyzed
from fxprune.analysis.branches import find_branches
from fxprune.analysis.groups import Group
from fxprune.analysis.patterns import excluded_modules
from fxprune.certify.certificate import same_function
from fxprune.choose.best import best_of
from fxprune.choose.depth import without_branches
from fxprune.choose.importance.score import Scores
from fxprune.choose.like.align import Pair, Scorer, align
from fxprune.choose.like.names import tensor_names
from fxprune.choose.like.sizes import target_sizes
from fxprune.choose.merge_heads import mergeable, merged
from fxprune.errors import ExampleInputError, SiblingError
from fxprune.graph.example import Example, seeded_noise
from fxprune.graph.tensors import in_float64, is_inside, like_weights, on_meta
from fxprune.passes.shrinking.fold_scales import constant_of
from fxprune.result.pruned_module import record_of
from fxprune.result.selection import Selection
from fxprune.rules.calls import call_of

__all__ = ["Sibling", "check_loads", "shaped_like", "sibling_analysis"]


@dataclass(frozen=True)
class Sibling:
    """What it takes to get the shape of a smaller model.

    analysis: of the model without the branches that the smaller one lacks.
    sizes: how many elements of each group that may shrink the smaller one has.
    renamed: a tensor's name here -> there, where they differ.
    scales: node of the analysed graph -> the constant that the smaller one multiplies by there.
    """

    analysis: Analysis
    sizes: dict[Group, int]
    renamed: dict[str, str]
    scales: dict[str, float]

    @property
    def groups(self) -> list[Group]:
        """The groups that shrink; heads and head dims both, where both do."""
        return [group for group, size in self.sizes.items() if size < group.size]

    def select(self, scores: Scores) -> Selection:
        """Keep the highest-scored elements of each group, as many as the smaller model has."""
        kept = {g: torch.from_numpy(best_of(scores[g], self.sizes[g])) for g in self.groups}
        return Selection.of(self.analysis, kept)


def shaped_like(
    model: Analysis, small: Analysis, score: Scorer, exclude: Sequence[str] = (), *, merge: bool = False
) -> Sibling:
    """Work out how a model becomes one that its smaller sibling's code can run.

    The parts of both graphs are matched in order; of several ways to drop branches the one with the
    least sum of `score(branches)` is taken.  Sizes are read off the sibling's shapes.  With `merge`,
    heads are merged to as many as the sibling has, where that divides them.

    Raises:
        SiblingError: the sibling is not the same architecture, or larger somewhere.
    """
    removed = align(model, small, score).removed
    shallow = without_branches(model, removed)
    if merge:
        pairs = align(shallow, small, score).pairs
        model = _merged(model, target_sizes(shallow, small, pairs))
        own = {b.name: b for b in find_branches(model.module, model.rules)}
        shallow = without_branches(model, [own[b.name] for b in removed])
    pairs = align(shallow, small, score).pairs
    sizes = target_sizes(shallow, small, pairs)
    modules = excluded_modules(model, exclude)
    for group, size in sizes.items():
        held = next((site.name for site in group.sites if is_inside(site.name, modules)), None)
        if held and size < group.size:
            raise SiblingError(f"like=: {group.name} must shrink to {size}, but exclude= keeps {held} whole")
    return Sibling(shallow, sizes, _renamed(shallow, small, pairs), _scales(shallow, small, pairs))


def _merged(model: Analysis, sizes: Mapping[Group, int]) -> Analysis:
    """Return the model with the heads that a shallower one is to have; groups are told by their sites."""
    wanted = {site: size for group, size in sizes.items() if group.role == "heads" for site in group.sites}
    counts = {g: wanted[g.sites[0]] for g in mergeable(model) if g.sites[0] in wanted}
    return merged(model, {group: count for group, count in counts.items() if group.size % count == 0})


def sibling_analysis(small: nn.Module, analysis: Analysis) -> Analysis:
    """Analyse the smaller model as the larger one was.

    Raises:
        SiblingError: it does not take what the larger one takes.
    """
    try:
        return analyzed(small, _example_for(small, analysis), AnalysisOptions.of(analysis))
    except ExampleInputError as error:
        raise SiblingError(f"like= must take what the model takes: {error}") from error


def _example_for(small: nn.Module, analysis: Analysis) -> Example:
    """Return the model's own example in the dtype and on the device of another one."""
    like = like_weights(small)
    example = analysis.captured.example
    return example.map(lambda t: t.to(like.device, like.dtype if t.is_floating_point() else t.dtype))


def _renamed(model: Analysis, small: Analysis, pairs: Sequence[Pair]) -> dict[str, str]:
    """Map all names that the model has for a tensor to the smaller model's, where they differ."""
    ours, theirs = _aliases(model), _aliases(small)
    names: dict[str, str] = {}
    for old, new in tensor_names(model.module, pairs):
        many, few = ours.get(old, [old]), theirs.get(new, [new])
        if len(many) != len(few):
            raise SiblingError(
                f"like=: {' and '.join(many)} is one tensor here; there it is {', '.join(few)}"
            )
        names |= dict(zip(many, few, strict=True))
    return {old: new for old, new in names.items() if old != new}


def _aliases(analysis: Analysis) -> dict[str, list[str]]:
    """Map each name in the graph to the model's names for that tensor."""
    found: dict[str, list[str]] = {}
    for name, used in analysis.names.items():
        found.setdefault(used, []).append(name)
    return found


def _scales(model: Analysis, small: Analysis, pairs: Sequence[Pair]) -> dict[str, float]:
    """Return the constants that differ, where the difference can be folded into weights."""
    found: dict[str, float] = {}
    for ours, theirs in pairs:
        if ours.op in ("get_attr", "placeholder"):
            continue
        mine, other = (call_of(n, a.module, a.rules) for n, a in ((ours, model), (theirs, small)))
        a, b = constant_of(mine), constant_of(other)
        if a is not None and b is not None:
            if a != b:
                found[ours.name] = b
            continue
        floats = [[v for v in (*c.args, *c.kwargs.values()) if isinstance(v, float)] for c in (mine, other)]
        if floats[0] != floats[1]:
            raise SiblingError(
                f"like=: {ours.name} has the constants {floats[0]} here and {floats[1]} in the smaller "
                f"model: no pruning changes them"
            )
    return found


def check_loads(pruned: fx.GraphModule, small: nn.Module) -> None:
    """Load the result into a copy of the smaller model, and see that it computes the same.

    Raises:
        SiblingError: it does not: the models differ in something that shapes and constants don't show.
    """
    stock = in_float64(copy.deepcopy(small))  # (its own precision may be lower, and is not what is asked)
    try:
        stock.load_state_dict(pruned.state_dict(), strict=True)
    except RuntimeError as error:
        raise SiblingError(f"like=: the smaller model does not take the result: {error}") from error
    if on_meta(pruned, small):
        return
    difference = same_function(pruned, stock, seeded_noise(record_of(pruned).example, pruned))
    if not difference <= 1e-6:
        raise SiblingError(
            f"like=: the smaller model loads the result, but computes something else (relative error "
            f"{difference:.1e}): it differs in more than sizes, such as a stride, an activation, or a buffer "
            f"that is not in its state_dict"
        )
