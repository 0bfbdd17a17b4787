"""Let the scales that modules hold as numbers follow head dims that shrank: the queries take up the ratio.

An instance needs none of it.  A class that is built of a configuration computes its scales from the sizes
that this says, so that a library's own saving comes back to the same function only so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from torch import fx, nn

from fxprune.analysis.analysis import Analysis
from fxprune.compiler.native.instance import Slices, instance_of
from fxprune.compiler.native.proof import wrong_in
from fxprune.compiler.native.scales import computed_scales
from fxprune.compiler.rewrite import rewrite
from fxprune.graph.tensors import module_of
from fxprune.passes.check import Check
from fxprune.passes.shrinking.fold_scales import constant_of
from fxprune.result.own_code import Edit, OwnCode, Slot
from fxprune.result.pruned_module import PrunedModule, plan_of
from fxprune.rules.calls import call_of
from fxprune.rules.registry import DEFAULT_RULES

__all__ = ["held_scales", "rescaled"]


def held_scales(model: nn.Module, analysis: Analysis, scales: Mapping[str, float]) -> frozenset[str]:
    """Find the products whose scale a module holds: an instance starts without folding those."""
    return frozenset(node for node, _ in _edits(model, analysis.module, scales))


def rescaled(
    model: nn.Module, analysis: Analysis, own: OwnCode, pruned: PrunedModule, slices: Slices, *, check: Check
) -> tuple[nn.Module, OwnCode, PrunedModule] | None:
    """Make an instance whose held scales are those of its own head dims; None where none is another."""
    modules = ["", *(name for name, _ in model.named_children())]
    scales = computed_scales(analysis, slices.selection, pruned, modules)
    edits = dict(_edits(model, pruned, scales))
    if not edits or not own.is_whole:
        return None
    plan = plan_of(pruned)
    scales = {node: scale for node, scale in scales.items() if node in edits}
    folded = rewrite(model, analysis, replace(plan, scales={**scales, **plan.scales}), check=check)
    own = replace(own, edits=(*own.edits, *dict.fromkeys(edits.values())))
    made = instance_of(model, own, folded, Slices(analysis, slices.selection, slices.unused, folded))
    return None if wrong_in(made, folded) else (made, own, folded)


def _edits(
    model: nn.Module, graph: fx.GraphModule, scales: Mapping[str, float]
) -> Iterator[tuple[str, Edit]]:
    """List, for each product, the number that its module, or the nearest around it, holds for its scale."""
    for node in graph.graph.nodes:
        if node.name not in scales:
            continue
        old, path = constant_of(call_of(node, graph, DEFAULT_RULES)), module_of(node)
        while old is not None:
            state = vars(model.get_submodule(path))
            names = [n for n, v in state.items() if type(v) is float and abs(v - old) <= 1e-6 * abs(old)]
            if len(names) == 1:  # of several, one may be something else, a rate of dropout
                new = scales[node.name]
                yield node.name, Edit(Slot(path, (names[0],)), state[names[0]], new)
            if names or not path:
                break
            path = path.rpartition(".")[0]
