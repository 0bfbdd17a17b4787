"""Guards of what code asks of its inputs, and of their parts: their ranks, kinds of numbers and types."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from torch import Tensor, fx

from fxprune.capture.symbolic.counted_parts import is_given
from fxprune.graph.op_names import op_name
from fxprune.graph.own_nodes import guard_argument, guard_branch, guard_kind, kind_of

if TYPE_CHECKING:
    from fxprune.capture.symbolic.tracer import Tracer

__all__ = ["guard_kinds", "guard_ranks", "guard_types"]


def guard_ranks(tracer: Tracer, graph: fx.Graph, asked: Mapping[fx.Node, str | None]) -> None:
    """Check the rank of each input that an asked rank follows from, and of what is squeezed since.

    asked: the node, and the line that asked first.
    """
    lines = dict(asked)
    for node in reversed(graph.nodes):
        if node in lines:
            for given in node.all_input_nodes:
                lines[given] = lines[node]
    value_of = tracer.decisions.structure_of
    squeezed = [node for node in _keeping_ranks(asked) if op_name(node.target) in ("squeeze", "squeeze_")]
    for node in [*(n for n in lines if is_given(n, value_of)), *squeezed]:
        value = value_of(node)
        if isinstance(value, Tensor):
            with graph.inserting_after(_last_input(node)):
                rank = tracer.create_node("call_method", "dim", (node,), {})
                with graph.inserting_after(rank):
                    options = {"where": lines[node] or node.name}
                    tracer.create_node("call_function", guard_branch, (rank, value.ndim), options)


def _keeping_ranks(asked: Iterable[fx.Node]) -> Iterator[fx.Node]:
    """Yield what asked ranks follow from, up to what gives its result a rank of its own."""
    seen, front = set[fx.Node](), [*asked]
    while front:
        at = front.pop()
        if at not in seen:
            seen.add(at)
            yield at
            front += [] if op_name(at.target) in _OWN_RANK else at.all_input_nodes


_OWN_RANK = {"view", "reshape", "expand", "broadcast_to", "view_as", "reshape_as", "expand_as"}


def guard_kinds(tracer: Tracer, graph: fx.Graph, asked: Mapping[fx.Node, str]) -> None:
    """Check the kind of each input at whose dtype the code looks.

    asked: the node, and the line that asked first.
    """
    for node, where in asked.items():
        kind = kind_of(tracer.decisions.structure_of(node))
        key = node.args[1] if node.target is operator.getitem else node.name
        with graph.inserting_after(_last_input(node)):
            options = {"name": str(key), "where": where}
            tracer.create_node("call_function", guard_kind, (node, kind), options)


def guard_types(tracer: Tracer, graph: fx.Graph, asked: Mapping[fx.Node, type]) -> None:
    """Check the type of each number at whose type the code looks."""
    for node, kind in asked.items():
        with graph.inserting_after(_last_input(node)):
            of = tracer.create_node("call_function", type, (node,), {})
        with graph.inserting_after(of):
            name = tracer.create_node("call_function", getattr, (of, "__name__"), {})
        with graph.inserting_after(name):
            options = {"name": f"type({node.name})"}
            tracer.create_node("call_function", guard_argument, (name, kind.__name__), options)


def _last_input(node: fx.Node) -> fx.Node:
    """Return the last of the inputs for one of them, or the part of one itself: guards come after."""
    if node.op != "placeholder":
        return node
    return [n for n in node.graph.nodes if n.op == "placeholder"][-1]
