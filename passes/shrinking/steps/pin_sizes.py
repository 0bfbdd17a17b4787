"""Sizes that are read from tensors keep meaning the original's, whatever shrinks.

`C = x.shape[-1]` becomes the number that it was, and so does all arithmetic on it: `C // num_heads`,
`head_dim ** -0.5`.  After this step every integer in the graph has its original value, and the integers
that spell a shrinking axis are exactly those that rules declare.
"""

from __future__ import annotations

import contextlib
import math
import operator
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import torch
from torch import fx

from fxprune.analysis.analysis import Analysis
from fxprune.graph.size_reads import ALL, size_read
from fxprune.passes.shrinking.steps.draft import Draft
from fxprune.result.selection import Selection
from fxprune.rules.axes import Axis, Product, Sum, atoms_of

__all__ = ["constant_sizes_as_numbers", "has_constant_size", "pin_sizes", "rescaled", "restored"]

_ARITHMETIC = {
    operator.add,
    operator.sub,
    operator.mul,
    operator.floordiv,
    operator.truediv,
    operator.mod,
    operator.pow,
    operator.neg,
    operator.getitem,
    math.sqrt,
    math.ceil,
    math.floor,
    torch.sym_sqrt if hasattr(torch, "sym_sqrt") else math.sqrt,
    int,
    float,
}


_AS_NUMBERS = ContextVar("_AS_NUMBERS", default=False)


@contextlib.contextmanager
def constant_sizes_as_numbers() -> Iterator[None]:
    """Spell sizes beside shrinking ones as graphs once did, to tell whether a saved graph is this one."""
    token = _AS_NUMBERS.set(True)
    try:
        yield
    finally:
        _AS_NUMBERS.reset(token)


def pin_sizes(draft: Draft) -> None:
    """Replace sizes that the graph reads of shrinking axes by what they were.

    Needs: a graph that spells the original's sizes.  Guarantees: it computes the same for unshrunk weights.
    """
    analysis, selection = draft.analysis, draft.selection
    pinned: dict[fx.Node, Any] = {}  # node of the new graph -> what stands for it
    for old, node in draft.new_of.items():
        node.args = fx.map_arg(node.args, lambda n: pinned.get(n, n))
        node.kwargs = fx.map_arg(node.kwargs, lambda n: pinned.get(n, n))
        read = size_read(old)
        if read is not None:
            value = _original(node, _axes_read(analysis, read), read[1], selection)
            if value is not None:
                pinned[node] = value
        elif node.op == "call_function" and node.target in _ARITHMETIC and _is_constant(node):
            pinned[node] = node.target(*node.args)  # type: ignore[operator]
    for node in reversed(pinned):
        if not node.users:
            draft.graph.erase_node(node)


def _axes_read(analysis: Analysis, read: tuple[fx.Node, int | None]) -> tuple[Axis, ...]:
    axes = analysis.axes[read[0]][0]
    return (Product.of(axes),) if read[1] == ALL else axes


def _original(node: fx.Node, axes: tuple[Axis, ...], dim: int | None, selection: Selection) -> Any:
    """Return what the read gave before anything shrank; None if it gives that still."""
    if dim is not None:
        dim = 0 if dim == ALL else dim
        return restored(node, axes[dim], selection) if selection.shrinks(axes[dim]) else None
    if not any(map(selection.shrinks, axes)):
        return None
    with node.graph.inserting_after(node):
        sizes: list[Any] = []
        for i, axis in enumerate(axes):
            if _AS_NUMBERS.get() and has_constant_size(axis):
                sizes.append(axis.size)
                continue
            # What does not shrink is read as before: places of a sliced table have no atom that is frozen,
            # and yet as many of them as the input has.
            size = node.graph.call_function(operator.getitem, (node, i))
            sizes.append(restored(size, axis, selection) if selection.shrinks(axis) else size)
    return tuple(sizes)


def restored(size: fx.Node, axis: Axis, selection: Selection) -> Any:
    """Return the size that an axis had, of the one that it has."""
    if has_constant_size(axis):
        return axis.size
    with size.graph.inserting_after(size):
        return rescaled(size.graph, size, axis, selection, to_pruned=False)


def has_constant_size(axis: Axis) -> bool:
    """Is the size the same for every input?  (What follows an input's shape is born frozen.)"""
    return axis.size != 1 and all(a.frozen is None for a in atoms_of(axis))


def rescaled(graph: fx.Graph, size: fx.Node, axis: Axis, selection: Selection, *, to_pruned: bool) -> fx.Node:
    """Convert a computed size of an axis, parts of which follow the input, from old to new, or back."""
    if isinstance(axis, Sum):  # only parts of constant size shrink: they lose as much for every input
        lost = axis.size - selection.size(axis)
        return graph.call_function(operator.sub if to_pruned else operator.add, (size, lost))
    parts = axis.parts if isinstance(axis, Product) else (axis,)
    live = Product.of(part for part in parts if selection.shrinks(part))
    old, new = live.size, selection.size(live)
    if not to_pruned:
        old, new = new, old
    quotient = graph.call_function(operator.floordiv, (size, old))
    with graph.inserting_after(quotient):
        return graph.call_function(operator.mul, (quotient, new))


def _is_constant(node: fx.Node) -> bool:
    """Are all arguments numbers, or a tuple of sizes and a place in it?"""
    if node.kwargs or (node.all_input_nodes and not isinstance(node.args[0], tuple)):
        return False
    first = node.args[0]
    if isinstance(first, tuple):
        return node.target is operator.getitem and isinstance(node.args[1], (int, slice))
    return all(isinstance(a, (int, float)) for a in node.args)
