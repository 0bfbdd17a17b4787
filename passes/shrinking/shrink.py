"""The rewrite: sliced weights and re-spelled sizes, in one pass (between them the graph is invalid)."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from functools import partial

import torch
from torch import fx, nn

from fxprune.analysis.analysis import Analysis
from fxprune.passes.shrinking.hide_forwards import hide_forwards
from fxprune.passes.shrinking.pin_sizes import pin_sizes
from fxprune.passes.shrinking.respell import (
    respell,
)
from fxprune.passes.shrinking.slice_weights import _Slicer
from fxprune.result.pruned_module import PrunedModule
from fxprune.result.selection import Selection
from fxprune.rules.axes import Axis
from fxprune.rules.modules import native

__all__ = ["copied", "shrink"]


def shrink(analysis: Analysis, *, selection: Selection, original: nn.Module) -> PrunedModule:
    """Make a new GraphModule with the selected channels only.

    Needs: a selection of the analysis's own groups.  Guarantees: every tensor is an index-select of the
    original's, under all of its names; shared tensors stay shared; the analysed graph and the original are
    not changed.
    """
    graph, new_of = copied(analysis.module.graph)
    pin_sizes(graph, new_of, analysis, selection)
    root = _Slicer(analysis, selection, original).root(graph)
    for node, step in analysis.steps.items():
        respell(new_of[node], step, analysis, selection, root)
        if step.flow.select_result:
            _select(new_of[node], analysis.axes[node][0], selection, root, original)
        if node.op == "call_module":
            _count_channels(root.get_submodule(str(node.target)), analysis.axes[node], selection)
    _describe(root)
    hide_forwards(graph, root)
    graph.lint()
    pruned = PrunedModule(root, graph, type(original).__name__)
    pruned.restore(
        _ties(pruned, analysis, original), {path: m.training for path, m in original.named_modules()}
    )
    return pruned


def copied(graph: fx.Graph) -> tuple[fx.Graph, dict[fx.Node, fx.Node]]:
    new = fx.Graph()
    new_of: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        copied = new.node_copy(node, lambda n: new_of[n])
        copied.meta = {k: v for k, v in node.meta.items() if k in ("where", "module", "literal_dtype")}
        new_of[node] = copied
    return new, new_of


def _ties(pruned: nn.Module, analysis: Analysis, original: nn.Module) -> dict[str, str]:
    """The other names that the original's `state_dict` has for tensors in use."""
    present = {*pruned.state_dict()}
    state = original.state_dict(keep_vars=True)
    return {n: used for n, used in analysis.names.items() if n in state and n not in present}


# ---------------------------------------------------------------- sizes that calls spell


def _select(
    node: fx.Node, axes: tuple[Axis, ...], selection: Selection, root: nn.Module, original: nn.Module
) -> None:
    """Of what the call returns, the kept elements: `arange(n)[kept]`."""
    device = next((p.device for p in original.parameters()), None)
    for dim, axis in enumerate(axes):
        positions = selection.positions(axis)
        if positions is None:
            continue
        name = f"_kept_{node.name}_{dim}"
        root.register_buffer(name, torch.from_numpy(positions).to(device), persistent=False)
        with node.graph.inserting_after(node):
            index = node.graph.get_attr(name)
        with node.graph.inserting_after(index):
            kept = node.graph.call_function(torch.index_select, (node, dim, index))
        node.replace_all_uses_with(kept, delete_user_cb=partial(operator.is_not, kept))


def _count_channels(module: nn.Module, axes: Sequence[tuple[Axis, ...]], selection: Selection) -> None:
    """A norm without weights has none to count: torch warns where `num_features` is not what comes in."""
    entry = native(module)
    names = [name for name in (entry.widths if entry else ()) if name in ("num_features", "num_channels")]
    positions = selection.positions(axes[0][1]) if names and axes and len(axes[0]) > 1 else None
    if positions is not None:
        setattr(module, names[0], len(positions))


def _describe(root: nn.Module) -> None:
    """Keep `in_features` and its like in step, once the weights and `groups` are what they will be."""
    for module in root.modules():
        entry = native(module)
        for attribute, width in (entry.widths if entry else {}).items():
            setattr(module, attribute, width(module))


# ---------------------------------------------------------------- weights
