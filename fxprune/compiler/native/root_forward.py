"""Replace a model's own `forward` by the rewritten graph, which calls the user's own modules.

Where the code of the root, or of a module that only the root's part could stand for, can't hold the new sizes
(positions that it computes from the width), its `forward` is the smallest thing that a graph can replace: the
modules that it calls go on running their own code.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from fxprune.compiler.native.barred import barred_methods
from fxprune.compiler.native.boundaries import Boundary, Number, Unknown
from fxprune.compiler.native.parts import PartError
from fxprune.compiler.native.traits import Traits
from fxprune.graph.nests import PLAIN, placed_leaves
from fxprune.graph.refuse_train_mode import drop_refusals
from fxprune.graph.tensors import get_or_create_submodule, is_inside, module_of
from fxprune.result.own_code import Call, Forward, Ref
from fxprune.result.own_forward import with_forward, without_forward
from fxprune.rules.modules import native

__all__ = ["forward_at", "replace_forward"]


def forward_at(
    model: nn.Module,
    boundaries: Mapping[str, Sequence[Boundary]],
    opened: Iterable[str],
    why: str,
    traits: Traits,
    pruned: fx.GraphModule,
) -> Forward:
    """Find the calls that a graph can make of the modules that the code of the opened ones calls.

    Raises:
        PartError: none of them can be called.
    """
    opened = tuple(opened)
    made = [
        call
        for calls in boundaries.values()
        for call in calls
        if call.path and call.caller in opened and call.path not in opened
    ]
    nodes: dict[str, fx.Node] = {node.name: node for node in pruned.graph.nodes}
    calls: list[Call] = []
    for boundary in sorted(made, key=lambda call: call.order):
        if native(model.get_submodule(boundary.path)) is None:  # else the graph calls the layer itself
            found = _call(boundary, nodes, traits)
            if found is not None and _leaves_nothing([*calls, found], pruned):
                calls.append(found)
    if not calls:
        raise PartError("it calls no module that the graph could call")
    return Forward(opened, why, tuple(calls), tuple(barred_methods(model)))


def replace_forward(instance: nn.Module, forward: Forward, pruned: fx.GraphModule) -> None:
    """Let an instance run the graph, with calls of its own modules, as its `forward`."""
    graph = _graph_with(forward.calls, pruned)
    for node in graph.nodes:
        if node.op in ("get_attr", "call_module"):
            _placed(instance, node, pruned)
    with_forward(instance, graph, dict.fromkeys(forward.barred, forward.why))
    for path in forward.opened:
        if path:
            without_forward(instance.get_submodule(path), forward.why)


def _placed(instance: nn.Module, node: fx.Node, pruned: fx.GraphModule) -> None:
    """Give the instance a tensor or a module that capture made."""
    path, _, leaf = str(node.target).rpartition(".")
    owner = get_or_create_submodule(instance, path)
    if hasattr(owner, leaf):
        return
    source = pruned.get_submodule(path)
    if node.op == "call_module":
        owner.add_module(leaf, source.get_submodule(leaf))
    elif leaf in source._parameters:
        owner.register_parameter(leaf, source._parameters[leaf])
    else:
        owner.register_buffer(leaf, source._buffers[leaf], leaf not in source._non_persistent_buffers_set)


def _call(call: Boundary, nodes: Mapping[str, fx.Node], traits: Traits) -> Call | None:
    """Spell a call in terms of the graph's nodes; None where it can't be."""
    inside = [node for node in nodes.values() if is_inside(module_of(node), [call.path])]
    read = {
        n.name for node in inside for n in node.all_input_nodes if not is_inside(module_of(n), [call.path])
    }
    results = tuple(
        (leaf.node, keys)
        for keys, leaf in placed_leaves(call.result, Ref)
        if leaf.node in nodes and is_inside(module_of(nodes[leaf.node]), [call.path])
    )
    if not results:
        return None
    place = {name: i for i, name in enumerate(nodes)}
    before = min(place[name] for name, _ in results)
    examples = len(next(iter(traits.values()), ()))

    def spelled(value: Any) -> Any:
        if isinstance(value, Ref):
            alike = [
                n for n in (*call.alike.get(value.node, ()), value.node) if place.get(n, before) < before
            ]
            chosen = [n for n in alike if n in read] or alike
            if not chosen:
                raise PartError(f"{value.node} is not computed before it")
            return Ref(max(chosen, key=place.__getitem__))
        if isinstance(value, Number) and len({*value.values}) == 1:
            return value.values[0]
        if isinstance(value, (Number, torch.dtype, torch.device)):
            wanted = {value.values if isinstance(value, Number) else (value,) * examples}
            same = [n for n, seen in traits.items() if seen in wanted and place.get(n, before) < before]
            if not same:
                raise PartError("it is given a number that the graph does not compute")
            return Ref(same[0])
        if type(value) in (list, tuple):
            return type(value)(map(spelled, value))
        if type(value) is dict:
            return {key: spelled(item) for key, item in value.items()}
        if isinstance(value, Unknown) or not isinstance(value, PLAIN):
            raise PartError(f"it is given a {type(value).__name__}")
        return value

    try:
        return Call(call.path, spelled(call.args), spelled(call.kwargs), results)
    except PartError:
        return None


def _graph_with(calls: Iterable[Call], pruned: fx.GraphModule) -> fx.Graph:
    """Copy a graph, with calls of modules in the place of what their code computes."""
    graph, env = fx.Graph(), dict[fx.Node, fx.Node]()
    for node in pruned.graph.nodes:
        env[node] = graph.node_copy(node, env.__getitem__)
    named = {node.name: env[node] for node in pruned.graph.nodes}
    order = {node: i for i, node in enumerate(graph.nodes)}
    for call in calls:
        _insert(graph, call, named, order)
    impure = {env[node] for node in pruned.graph.nodes if node.is_impure()}
    _drop_dead(graph, [call.path for call in calls], impure)
    drop_refusals(graph, pruned)  # what the instance does in train mode has a proof of its own
    graph.lint()
    return graph


def _insert(graph: fx.Graph, call: Call, named: dict[str, fx.Node], order: dict[fx.Node, int]) -> None:
    """Make a call right before the first node that it stands for; `named` follows."""
    olds = [named[name] for name, _ in call.results]
    first = min(olds, key=order.__getitem__)

    def node_of(value: Any) -> Any:
        return named[value.node] if isinstance(value, Ref) else value

    args, kwargs = pytree.tree_map(node_of, (call.args, call.kwargs))
    with graph.inserting_before(first):
        made = graph.call_module(call.path, tuple(args), kwargs)
        order[made] = order[first]
        for (name, keys), old in zip(call.results, olds, strict=True):
            new = made
            for key in keys:
                new = graph.call_function(operator.getitem, (new, key))
                order[new] = order[first]
            for user in [*old.users]:
                if order[user] > order[old]:
                    user.replace_input_with(old, new)
            named[name] = new


def _drop_dead(graph: fx.Graph, called: Sequence[str], impure: Collection[fx.Node]) -> None:
    """Remove what only the code of called modules needed; what that writes and guards as well."""
    live: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        own = is_inside(module_of(node), called)
        if node in live or node.op in ("placeholder", "output") or (node in impure and not own):
            live.update([node], node.all_input_nodes)
    for node in reversed(graph.nodes):
        if node not in live:
            graph.erase_node(node)


def _leaves_nothing(calls: Sequence[Call], pruned: fx.GraphModule) -> bool:
    """Is nothing computed twice: by a called module's own code, and by a node of it that others read?"""
    try:
        graph = _graph_with(calls, pruned)
    except (KeyError, RuntimeError):
        return False
    return not any(
        node.op.startswith("call") and is_inside(module_of(node), [call.path for call in calls])
        for node in graph.nodes
    )
