"""The rewrite: sliced weights and re-spelled sizes, in one pass (between them the graph is invalid)."""

from __future__ import annotations

import copy
import operator
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxprune.analysis import Analysis
from fxprune.axes import Axis
from fxprune.blocks import taken
from fxprune.calls import canonical_keyword
from fxprune.infer import Step
from fxprune.passes.hide_forwards import hide_forwards
from fxprune.passes.pin_sizes import is_static, pin_sizes, rescaled
from fxprune.pruned_module import PrunedModule, holder
from fxprune.rules.modules import native
from fxprune.rules.registry import Bound
from fxprune.selection import Selection

__all__ = ["copied", "respell", "shrink"]


def shrink(analysis: Analysis, selection: Selection, original: nn.Module) -> PrunedModule:
    """A new GraphModule with the selected channels only.

    Contract: every tensor is an index-select of the original's, under all of its names; shared tensors
    stay shared; the analysed graph and the original are not changed.  Needs the analysis's own graph.
    """
    graph, new_of = copied(analysis.module.graph)
    pin_sizes(graph, new_of, analysis, selection)
    root = _Slicer(analysis, selection, original).root(graph)
    for node, step in analysis.inference.steps.items():
        respell(new_of[node], step, analysis, selection, root)
        if step.flow.selected:
            _select(new_of[node], analysis.axes[node][0], selection, root, original)
    _describe(root)
    hide_forwards(graph, root)
    graph.lint()
    pruned = PrunedModule(root, graph, type(original).__name__)
    ties = _ties(pruned, analysis, original)
    pruned.meta["fxprune"] = {"ties": ties}
    pruned.restore(ties, {path: m.training for path, m in original.named_modules()})
    return pruned


def copied(graph: fx.Graph) -> tuple[fx.Graph, dict[fx.Node, fx.Node]]:
    new = fx.Graph()
    new_of: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        copied = new.node_copy(node, lambda n: new_of[n])
        copied.meta = {k: v for k, v in node.meta.items() if k in ("where", "module")}
        new_of[node] = copied
    return new, new_of


def _ties(pruned: nn.Module, analysis: Analysis, original: nn.Module) -> dict[str, str]:
    """The other names that the original's `state_dict` has for tensors in use."""
    present = {*pruned.state_dict()}
    state = original.state_dict(keep_vars=True)
    return {n: used for n, used in analysis.names.items() if n in state and n not in present}


# ---------------------------------------------------------------- sizes that calls spell


def respell(node: fx.Node, step: Step, analysis: Analysis, selection: Selection, root: nn.Module) -> None:
    """Write the new size of each axis wherever the call spells one as an integer."""
    resolve = analysis.inference.solver.resolve
    for argument, spelled in step.flow.sizes.items():
        spelled = _map_axes(spelled, resolve)
        if not _shrinks(spelled, selection):
            continue
        assert step.rule is not None
        position = list(step.rule.signature.parameters).index(argument)
        if node.op == "call_module":
            _respell_attribute(root.get_submodule(str(node.target)), position - 1, spelled, selection)
            continue
        old = step.call.bind(step.rule).get(argument)
        if old is None:
            continue
        if isinstance(spelled, list) and not isinstance(old, (list, tuple)):
            _respell_split(node, step, argument, spelled, selection)
            continue
        current = node.args[position] if position < len(node.args) else _keyword(node, step, argument)
        step.call.write(node, step.rule, argument, _new_value(current, spelled, selection, node))


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


def _keyword(node: fx.Node, step: Step, argument: str) -> Any:
    return next(v for k, v in node.kwargs.items() if canonical_keyword(k) == argument)


def _respell_attribute(module: nn.Module, index: int, spelled: Any, selection: Selection) -> None:
    entry = native(module)
    assert entry is not None
    name = entry.arguments[index]
    old = getattr(module, name)
    if isinstance(spelled, (list, tuple)):
        value = tuple(selection.size(axis) if o != -1 else -1 for axis, o in zip(spelled, old, strict=True))
        setattr(module, name, value)
    else:
        setattr(module, name, selection.size(spelled))


def _describe(root: nn.Module) -> None:
    """Keep `in_features` and its like in step, once the weights and `groups` are what they will be."""
    for module in root.modules():
        entry = native(module)
        for attribute, width in (entry.widths if entry else {}).items():
            setattr(module, attribute, width(module))


def _respell_split(node: fx.Node, step: Step, argument: str, parts: list[Axis], selection: Selection) -> None:
    """chunk(2), split(64): one number stood for all parts.  Equal parts stay so, others are listed."""
    sizes = [selection.size(part) for part in parts]
    equal = len({*sizes[:-1]}) <= 1 and sizes[-1] <= sizes[0]
    if equal and argument == "split_size":
        assert step.rule is not None
        step.call.write(node, step.rule, argument, sizes[0])
    elif len(set(sizes)) > 1:
        assert step.rule is not None and step.flow.target is not None
        dim = step.call.bind(step.rule).get("dim", 0)
        node.op, node.target = "call_function", step.flow.target
        node.args, node.kwargs = (node.all_input_nodes[0], sizes, dim), {}


def _new_value(value: Any, spelled: Any, selection: Selection, node: fx.Node) -> Any:
    """An argument with the spelled sizes replaced; -1 and what no shrinking axis spells stay."""
    if spelled is None or not _shrinks(spelled, selection):
        return value
    if isinstance(value, slice):
        return slice(
            _new_value(value.start, spelled.start, selection, node),
            _new_value(value.stop, spelled.stop, selection, node),
            value.step,
        )
    if isinstance(spelled, (list, tuple)):
        if isinstance(value, fx.Node):
            with node.graph.inserting_before(node):
                value = [node.graph.call_function(_getitem, (value, i)) for i in range(len(spelled))]
        pairs = zip(value, spelled, strict=True)
        return type(value)(_new_value(v, s, selection, node) for v, s in pairs)
    bound = isinstance(spelled, Bound)
    axis = spelled.axis if bound else spelled
    if isinstance(value, fx.Node) and (bound or not is_static(axis)):
        with node.graph.inserting_before(node):
            return rescaled(node.graph, value, axis, selection, forwards=True)
    if isinstance(value, int) and value < 0:
        return -selection.size(axis) if bound else -1
    return selection.size(axis)


def _getitem(value: Any, index: int) -> Any:
    return value[index]


def _map_axes(spelled: Any, function: Any) -> Any:
    if spelled is None:
        return None
    if isinstance(spelled, Bound):
        return Bound(function(spelled.axis))
    if isinstance(spelled, slice):
        return slice(_map_axes(spelled.start, function), _map_axes(spelled.stop, function))
    if isinstance(spelled, (list, tuple)):
        return type(spelled)(_map_axes(s, function) for s in spelled)
    return function(spelled)


def _shrinks(spelled: Any, selection: Selection) -> bool:
    if spelled is None:
        return False
    if isinstance(spelled, Bound):
        return selection.shrinks(spelled.axis)
    if isinstance(spelled, slice):
        return _shrinks(spelled.start, selection) or _shrinks(spelled.stop, selection)
    if isinstance(spelled, (list, tuple)):
        return any(_shrinks(s, selection) for s in spelled)
    return selection.shrinks(spelled)


# ---------------------------------------------------------------- weights


class _Slicer:
    """Builds the new tree of modules: copies of the leaves, holders for the rest, sliced tensors."""

    def __init__(self, analysis: Analysis, selection: Selection, original: nn.Module) -> None:
        self.analysis, self.selection = analysis, selection
        self.saved = set(original.state_dict())
        self.sliced: dict[int, Tensor] = {}  # one slice per tensor, so that shared ones stay shared

    def root(self, graph: fx.Graph) -> nn.Module:
        source = self.analysis.module
        root = nn.Module()
        held = ((n.op, str(n.target)) for n in graph.nodes if n.op in ("call_module", "get_attr"))
        for op, path in dict.fromkeys(held):
            if op == "call_module":
                _place(root, path, self._leaf(source.get_submodule(path), path))
            else:
                self._place_tensor(root, path, source)
        return root

    def _leaf(self, module: nn.Module, path: str) -> nn.Module:
        new = copy.copy(module)
        new._parameters = {n: self._slice(t, f"{path}.{n}") for n, t in module._parameters.items()}
        new._buffers = {n: self._slice(t, f"{path}.{n}") for n, t in module._buffers.items()}
        new._modules = {n: m and self._leaf(m, f"{path}.{n}") for n, m in module._modules.items()}
        return new

    def _slice(self, tensor: Tensor | None, name: str) -> Any:
        if tensor is None:
            return None
        if id(tensor) not in self.sliced:
            axes = self.analysis.weights.get(name, ())
            new = taken(tensor.detach(), [self.selection.positions(axis) for axis in axes])
            if isinstance(tensor, nn.Parameter):
                new = nn.Parameter(new, requires_grad=tensor.requires_grad)
            self.sliced[id(tensor)] = new
        return self.sliced[id(tensor)]

    def _place_tensor(self, root: nn.Module, name: str, source: nn.Module) -> None:
        path, _, leaf = name.rpartition(".")
        owner, place = source.get_submodule(path), holder(root, path)
        tensor = getattr(owner, leaf)
        if isinstance(tensor, nn.Parameter):
            place.register_parameter(leaf, self._slice(tensor, name))
        else:
            place.register_buffer(leaf, self._slice(tensor, name), persistent=name in self.saved)


def _place(root: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, leaf = path.rpartition(".")
    holder(root, parent).add_module(leaf, module)
