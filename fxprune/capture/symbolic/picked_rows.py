"""`x[mask] = f(x[mask])`: how many rows a mask picks differs from call to call, but `where` keeps shapes.

What is computed of picked rows alone, element by element, is computed of all rows, and taken where they are
picked.
"""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from fxprune.graph.op_names import op_name
from fxprune.graph.values import PUT_OFF, NodeError

if TYPE_CHECKING:
    from fxprune.capture.symbolic.tracer import Tracer

__all__ = ["drop_picked", "is_picked", "mark_picked", "written_rows"]

# Element by element, and with a derivative that is finite everywhere: of rows that are not picked as well.
_SAFE = {
    "add",
    "sub",
    "mul",
    "neg",
    "iadd",
    "isub",
    "imul",
    "relu",
    "gelu",
    "silu",
    "sigmoid",
    "tanh",
    "clone",
}

_LAYOUTS = {"view", "reshape", "flatten", "contiguous", "t", "transpose", "permute"}

# What a mask is made by: two that are spelled alike are equal.
_COMPARES = {"eq", "ne", "lt", "le", "gt", "ge", "getitem", "invert", "and_", "or_", "xor", "logical_not"}


def mark_picked(tracer: Tracer, node: fx.Node) -> None:
    """Mark the rows that a mask picks, and what is computed of such: they are run only if asked for."""
    index = node.args[1] if node.target is operator.getitem else None
    picks = isinstance(index, fx.Node) and _is_mask(tracer, index)
    if picks or any(map(is_picked, node.all_input_nodes)):
        node.meta[PUT_OFF] = True


def _is_mask(tracer: Tracer, node: fx.Node) -> bool:
    if is_picked(node) or _holds_numbers(tracer, node):
        return False
    try:
        mask = tracer.decisions.structure_of(node)
    except (NodeError, fx.proxy.TraceError):  # said where its value is needed
        return False
    return isinstance(mask, Tensor) and mask.dtype is torch.bool


def _holds_numbers(tracer: Tracer, node: fx.Node) -> bool:
    """Is it a tensor of the model's own that is no mask, laid out otherwise?  Nothing is run to tell."""
    while node.op == "call_method" and node.target in _LAYOUTS and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    if node.op != "get_attr":
        return False
    path, _, name = str(node.target).rpartition(".")
    owner = tracer.root.get_submodule(path)
    held = owner._buffers.get(name, owner._parameters.get(name))  # (an attribute is a proxy meanwhile)
    return held is not None and held.dtype is not torch.bool


def is_picked(node: fx.Node) -> bool:
    """Is a node computed of rows that a mask picked?"""
    return PUT_OFF in node.meta


def written_rows(tracer: Tracer, whole: fx.Proxy, mask: fx.Proxy, value: Any) -> fx.Proxy | None:
    """Return what `whole[mask] = value` leaves in `whole`, with shapes that the mask does not change.

    None if the value is not computed, element by element, of rows picked by the same mask.
    """
    if not isinstance(value, fx.Proxy) or not is_picked(value.node):
        return None
    shape = tracer.decisions.structure(whole)
    full = _of_all_rows(tracer, value.node, mask.node, shape.ndim - tracer.decisions.structure(mask).ndim + 1)
    if full is None:
        return None
    if tracer.decisions.structure(full).dtype is not shape.dtype:
        full = full.type_as(whole)
    for _ in range(shape.ndim - tracer.decisions.structure(mask).ndim):
        mask = mask.unsqueeze(-1)
    taken: fx.Proxy = tracer.create_proxy("call_function", torch.where, (mask, full, whole), {})
    return taken


def drop_picked(graph: fx.Graph) -> None:
    """Drop what was computed of picked rows, where nothing reads it any more."""
    for node in reversed(graph.nodes):
        if is_picked(node) and not node.users:
            graph.erase_node(node)


def _of_all_rows(tracer: Tracer, node: fx.Node, mask: fx.Node, rank: int) -> Any:
    """Compute for all rows what a node computes for those that the mask picked, which have that rank."""
    if node.target is operator.getitem and _equal(node.args[1], mask):
        return tracer.proxy(node.args[0])  # type: ignore[arg-type]
    if op_name(node.target).strip("_") not in _SAFE:
        return None
    arguments: list[Any] = []
    for given in node.args:
        made: Any = given
        if isinstance(given, fx.Node):
            of_rows = is_picked(given)
            made = _of_all_rows(tracer, given, mask, rank) if of_rows else _alike(tracer, given, rank)
        if not isinstance(made, (fx.Proxy, bool, int, float)):
            return None
        arguments.append(made)
    if any(isinstance(given, fx.Node) for given in node.kwargs.values()):
        return None
    return tracer.create_proxy(node.op, node.target, tuple(arguments), dict(node.kwargs))


def _equal(a: Any, b: Any) -> bool:
    """Are two masks one, or spelled alike?"""
    if not isinstance(a, fx.Node) or not isinstance(b, fx.Node):
        return type(a) is type(b) and not isinstance(a, (list, dict)) and bool(a == b)
    if a is b:
        return True
    alike = (a.op, a.target) == (b.op, b.target) and op_name(a.target) in _COMPARES
    return (
        alike
        and not a.kwargs
        and not b.kwargs
        and len(a.args) == len(b.args)
        and all(map(_equal, a.args, b.args))
    )


def _alike(tracer: Tracer, node: fx.Node, rank: int) -> fx.Proxy | None:
    """Return what is the same for each row, or None."""
    value = tracer.decisions.structure_of(node)
    same = not isinstance(value, Tensor) or value.ndim < rank or (value.ndim == rank and value.shape[0] == 1)
    return tracer.proxy(node) if same else None
