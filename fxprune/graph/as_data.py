"""A graph as plain data and back: nothing is traced again, and no generated code is run for it.

What code that is traced again computes at once (`int(size)`, `len(shape)`, `buffer[:, :size]`) thus stays a
node like any other.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.fx.node import _get_qualified_name, map_aggregate

from fxprune.graph import own_nodes

__all__ = ["graph_as_data", "graph_from_data", "own_name"]

OWN = "fxprune::"
KEPT = ("where", "module", "no_grad", "literal_dtype")  # what of a node's meta is data


@dataclass(frozen=True)
class _Node:
    """The i-th node of the graph, as an argument."""

    index: int


@dataclass(frozen=True)
class _Function:
    """A function, or a constant of torch, by a name that every process can import."""

    name: str


NodeData = tuple[str, str, Any, Any, Any, dict[str, Any]]


def graph_as_data(graph: fx.Graph) -> list[NodeData]:
    """Return each node as (op, name, target, args, kwargs, meta), in order."""
    number: dict[fx.Node, Any] = {node: _Node(i) for i, node in enumerate(graph.nodes)}

    def argument(value: Any) -> Any:
        if isinstance(value, (torch.memory_format, torch.layout)):  # torch.save can't take them
            return _Function(str(value))
        return number[value] if isinstance(value, fx.Node) else value

    return [
        (
            node.op,
            node.name,
            _written(node.target) if node.op == "call_function" else node.target,
            map_aggregate(node.args, argument),
            map_aggregate(node.kwargs, argument),
            {key: node.meta[key] for key in KEPT if key in node.meta},
        )
        for node in graph.nodes
    ]


def graph_from_data(data: list[NodeData]) -> fx.Graph:
    """Return the graph that `graph_as_data` wrote down, node for node, under the same names."""
    graph = fx.Graph()
    made: list[fx.Node] = []

    def node_of(value: Any) -> Any:
        if isinstance(value, _Node):
            return made[value.index]
        if isinstance(value, _Function):
            return _read(value)
        if isinstance(value, slice):
            return slice(node_of(value.start), node_of(value.stop), node_of(value.step))
        if isinstance(value, dict):
            return {key: node_of(v) for key, v in value.items()}
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return type(value)(*map(node_of, value))
        if isinstance(value, (list, tuple)):
            return (tuple if isinstance(value, tuple) else list)(map(node_of, value))
        return value

    for op, name, target, args, kwargs, meta in data:
        target = _read(target) if isinstance(target, _Function) else target
        node = graph.create_node(op, target, node_of(args), node_of(kwargs), name)
        node.meta.update(meta)
        made.append(node)
    return graph


def own_name(value: Any) -> str | None:
    """Name a function or class of our own nodes, `fxprune::written` say; None for all else.

    Names of files are no part of it: what was saved survives a move of ours.
    """
    name = getattr(value, "__name__", "")
    return f"{OWN}{name}" if name and getattr(own_nodes, name, None) is value else None


def _written(target: Callable[..., Any]) -> _Function | Callable[..., Any]:
    name = own_name(target)
    if name is None and isinstance(target, torch._ops.OpOverload):
        name = str(target)  # aten.add.Tensor
        name = f"torch.ops.{name}"
    if name is None:
        try:
            name = _get_qualified_name(target)
        except Exception:  # torch refuses some functions: pickle takes them as they are, or says why not
            return target
    function = _Function(name)
    try:
        found = _read(function)
    except (AttributeError, ImportError):
        return target
    return function if found is target else target


def _read(function: _Function) -> Any:
    name = function.name
    if name.startswith(OWN):
        return getattr(own_nodes, name.removeprefix(OWN))
    parts = name.split(".")
    for end in range(len(parts) - 1, 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:end]))
        except ImportError:
            continue
        for part in parts[end:]:
            found = getattr(found, part)
        return found
    return getattr(importlib.import_module("builtins"), name)
