"""Two graphs of one model, captured in eval and in train mode, become one that follows the mode.

Where they differ only in constants (`dropout_p=0.1` here, `0.0` there), the constant becomes a `ModeValue`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn

from fxprune.graph.own_nodes import ModeValue, is_guard
from fxprune.graph.tensors import module_of
from fxprune.graph.writes import state_of, written_state

__all__ = ["difference", "merge_modes"]


def difference(eval_graph: fx.Graph, train_graph: fx.Graph, root: nn.Module) -> list[str]:
    """Return the modules at work where the graphs first differ in more than constants; none if nowhere.

    What both compute for nothing is dropped from them.
    """
    kept = written_state(eval_graph, root)

    def is_impure(node: fx.Node) -> bool:
        if node.op == "call_module" and getattr(root.get_submodule(str(node.target)), "_is_impure", False):
            return True  # torch.fx's own sign for a call that has to stay
        return node.op in ("placeholder", "output") or is_guard(node) or state_of(node, root) in kept

    for graph in (eval_graph, train_graph):
        graph.eliminate_dead_code(is_impure_node=is_impure)
        _spell_defaults(graph)
    counterpart: dict[fx.Node, fx.Node] = {}
    for a, b in zip(eval_graph.nodes, train_graph.nodes, strict=False):
        counterpart[b] = a
        if not _aligned(a, b, counterpart):
            return [module_of(n) for n in (b, a)]
    return []  # both have come to their output


def merge_modes(eval_graph: fx.Graph, train_graph: fx.Graph, root: nn.Module) -> None:
    """Make `eval_graph` follow the mode; only where there is no `difference`."""
    switches: dict[Any, str] = {}
    for node, other in list(zip(eval_graph.nodes, train_graph.nodes, strict=True)):
        node.args, node.kwargs = _follow(
            (node.args, node.kwargs), (other.args, other.kwargs), node, root, switches
        )


def _spell_defaults(graph: fx.Graph) -> None:
    """Write trailing defaults into ATen calls, which leave out more of them in one mode than in the other."""
    for node in graph.nodes:
        if isinstance(node.target, torch._ops.OpOverload):
            positional = [a for a in node.target._schema.arguments if not a.kwarg_only]
            rest = positional[len(node.args) :]
            if all(a.has_default_value() and a.name not in node.kwargs for a in rest):
                node.args = (*node.args, *(a.default_value for a in rest))


def _aligned(a: fx.Node, b: fx.Node, counterpart: dict[fx.Node, fx.Node]) -> bool:
    kwargs, others = (
        {k: v for k, v in n.kwargs.items() if not (k == "where" and is_guard(n))} for n in (a, b)
    )
    return (
        a.op == b.op
        and a.target == b.target
        and _same_shape((a.args, kwargs), (b.args, others), counterpart)  # (two lines may ask one question)
    )


def _same_shape(a: Any, b: Any, counterpart: dict[fx.Node, fx.Node]) -> bool:
    if isinstance(b, fx.Node):
        return counterpart.get(b) is a
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same_shape(a[k], b[k], counterpart) for k in a)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(_same_shape(x, y, counterpart) for x, y in zip(a, b, strict=True))
    if isinstance(a, slice) and isinstance(b, slice):
        ends, others = ((part.start, part.stop, part.step) for part in (a, b))
        same = all(not _is_number(x) or x == y for x, y in zip(ends, others, strict=True))
        return same and _same_shape(ends, others, counterpart)
    if isinstance(a, fx.Node):
        return False
    return (_is_number(a) and _is_number(b)) or (type(a) is type(b) and bool(a == b))


def _is_number(value: Any) -> bool:
    return isinstance(value, (bool, int, float))


def _follow(a: Any, b: Any, node: fx.Node, root: nn.Module, switches: dict[Any, str]) -> Any:
    """Copy `a`, with a call of the module's `ModeValue` wherever `b` has another value for its number.

    Other constants (words, dtypes, slices, None) are the same in both: elsewhere the graphs differ.
    """
    if isinstance(a, dict):
        return {k: _follow(a[k], b[k], node, root, switches) for k in a}
    if isinstance(a, (list, tuple)):
        return type(a)(_follow(x, y, node, root, switches) for x, y in zip(a, b, strict=True))
    if isinstance(a, fx.Node) or (type(a) is type(b) and a == b) or not isinstance(a, (bool, int, float)):
        return a
    path = module_of(node)
    key = path, repr(a), repr(b)  # 1, 1.0 and True are equal
    if key not in switches:
        switches[key] = f"{path}._mode_{len(switches)}".lstrip(".")
        owner = root.get_submodule(path)
        owner.add_module(switches[key].rpartition(".")[2], ModeValue(train=b, eval=a))
    with node.graph.inserting_before(node):
        return node.graph.call_module(switches[key])
