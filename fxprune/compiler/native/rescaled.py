"""Let the scales that modules hold as numbers follow head dims that shrank: the queries take up the ratio.

An instance needs none of it.  A class that is built of a configuration computes its scales from the sizes
that this says, so that a library's own saving comes back to the same function only so.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace

from torch import fx, nn

from fxprune.analysis.analysis import Analysis
from fxprune.compiler.native.barred import names_of_methods, names_reached
from fxprune.compiler.native.flags import flag_of, split_flags
from fxprune.compiler.native.instance import Slices, instance_of
from fxprune.compiler.native.proof import wrong_in
from fxprune.compiler.native.scales import POWERS, computed_scales, everywhere
from fxprune.compiler.native.training import trains_otherwise
from fxprune.compiler.rewrite import rewrite
from fxprune.graph.example import seeded_noise
from fxprune.graph.nests import Value
from fxprune.graph.tensors import module_of
from fxprune.passes.check import Check
from fxprune.passes.shrinking.fold_scales import constant_of
from fxprune.result.own_code import Edit, OwnCode, Slot
from fxprune.result.pruned_module import PrunedModule, plan_of
from fxprune.rules.calls import call_of
from fxprune.rules.registry import DEFAULT_RULES

__all__ = ["held_scales", "rescaled", "with_branches"]

_Made = tuple[nn.Module, OwnCode, PrunedModule]
DEFAULT_SCALE = "scaled_dot_product_attention"  # it computes its scale from the head dim that it sees


def held_scales(model: nn.Module, graph: fx.GraphModule, scales: Mapping[str, float]) -> frozenset[str]:
    """Find the products whose scale a module holds: an instance starts without folding those."""
    return frozenset(node for node, _ in _edits(model, graph, scales))


def with_branches(
    model: nn.Module, analysis: Analysis, found: _Made, slices: Slices, *, check: Check
) -> _Made:
    """Let branches that no call took have the scales of the ones taken, where a head dim shrank.

    A module may hold its scale for one branch, while torch computes it in the other; or a head dim, of which
    one computes its scale while the other views by it.  Flags that make no
    difference in the original, and still do in the instance, are recorded: it refuses the other way.
    """
    made, own, pruned = found
    folded = plan_of(pruned).scales
    own = _with_held(model, analysis, made, own, pruned)
    followed = computed_scales(analysis, slices.selection, pruned, everywhere(model))
    paths = {module_of(node) for node in pruned.graph.nodes if node.name in {*folded, *followed}}
    if not paths:
        return found
    example = seeded_noise(pruned.record.example, model)
    split = split_flags(model, made, example, paths)
    asked = {path for path, _ in split} | {*_with_default_scale(model, paths)}
    wanted = {n.name for n in pruned.graph.nodes if n.name in followed and module_of(n) in asked}
    wanted |= {name for name, edit in _edits(model, pruned, followed, bases=True) if type(edit.new) is int}
    other = rescaled(model, analysis, own, pruned, slices, check=check, only=wanted) if wanted else None
    if other is not None:
        made, own, pruned = other
        split = split_flags(model, made, example, paths)
    held = [(path, flag, flag_of(made.get_submodule(path), flag)) for path, flag in split]
    return made, replace(own, flags=tuple(held)), pruned


def _with_default_scale(model: nn.Module, paths: Collection[str]) -> Iterator[str]:
    """Find the modules whose code may come to torch's own attention, in functions as well."""
    modules = {path: model.get_submodule(path) for path in paths}
    classes = {type(module): module for module in modules.values()}
    named = {cls for cls, module in classes.items() if DEFAULT_SCALE in names_reached(module)}
    yield from (path for path, module in modules.items() if type(module) in named)


def _with_held(
    model: nn.Module, analysis: Analysis, instance: nn.Module, own: OwnCode, pruned: PrunedModule
) -> OwnCode:
    """Edit, in place, the scales that modules hold beside those that are folded, where no call reads them."""
    done = {edit.slot for edit in own.edits}
    found = dict.fromkeys(edit for _, edit in _edits(model, analysis.module, plan_of(pruned).scales))
    edits = [edit for edit in found if edit.slot not in done and _may_edit(model, instance, edit)]
    for edit in edits:
        edit.slot.write(instance, edit.new)
    follows = analysis.captured.follows_mode  # else train mode is held to its own graph afterwards
    if edits and (wrong_in(instance, pruned) or (follows and trains_otherwise(model, instance, pruned))):
        for edit in edits:
            edit.slot.write(instance, edit.old)
        return own
    return replace(own, edits=(*own.edits, *edits))


def _may_edit(model: nn.Module, instance: nn.Module, edit: Edit) -> bool:
    """Does the code of a module, which is the user's own, name the number that it holds?"""
    path = edit.slot.path
    is_own = not isinstance(instance.get_submodule(path), fx.GraphModule)
    return is_own and edit.slot.keys[0] in names_of_methods(model.get_submodule(path))


def rescaled(
    model: nn.Module,
    analysis: Analysis,
    own: OwnCode,
    pruned: PrunedModule,
    slices: Slices,
    *,
    check: Check,
    only: Collection[str] | None = None,
) -> _Made | None:
    """Make an instance whose held scales are those of its own head dims; None where none is another.

    only: of these products; by default of all.
    """
    scales = computed_scales(analysis, slices.selection, pruned, everywhere(model))
    edits = dict(_edits(model, pruned, scales, bases=only is not None))
    if not edits or not own.is_whole:
        return None
    plan = plan_of(pruned)
    scales = {n: scale for n, scale in scales.items() if n in edits and (only is None or n in only)}
    if not scales:
        return None
    folded = rewrite(model, analysis, replace(plan, scales={**scales, **plan.scales}), check=check)
    own = replace(own, edits=(*own.edits, *dict.fromkeys(edits[node] for node in scales)))
    made = instance_of(model, own, folded, Slices(analysis, slices.selection, slices.unused, folded))
    return None if wrong_in(made, folded) else (made, own, folded)


def _edits(
    model: nn.Module, graph: fx.GraphModule, scales: Mapping[str, float], *, bases: bool = False
) -> Iterator[tuple[str, Edit]]:
    """List, for each product, the number that its module holds for its scale.

    One of a module around it may be anything: a threshold, a rate.
    bases: or the whole number that its code computes its scale from.
    """
    for node in graph.graph.nodes:
        if node.name not in scales:
            continue
        old, path = constant_of(call_of(node, graph, DEFAULT_RULES)), module_of(node)
        if old is None:
            continue
        state, new = vars(model.get_submodule(path)), scales[node.name]
        names = [n for n, v in state.items() if type(v) is float and abs(v - old) <= 1e-6 * abs(old)]
        if len(names) == 1:  # of several, one may be something else, a rate of dropout
            yield node.name, Edit(Slot(path, (names[0],)), state[names[0]], new)
        found = [*_bases(state, old, new)] if bases and not names else []
        if len(found) == 1:
            name, base = found[0]
            yield node.name, Edit(Slot(path, (name,)), state[name], base)


def _bases(state: Mapping[str, Value], old: float, new: float) -> Iterator[tuple[str, int]]:
    """Find whole numbers of which a scale is a power, each with that of which another scale is it."""
    for power in POWERS:
        for name, value in state.items():
            if type(value) is int and value > 1 and abs(value**power - old) <= 1e-6 * abs(old):
                base = round(new ** (1 / power))
                if base and abs(base**power - new) <= 1e-6 * abs(new):
                    yield name, base
