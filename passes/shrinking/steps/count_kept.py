"""Count what is kept wherever a number counts what a statistic runs over: `x.sum(-1) / 64`."""

from __future__ import annotations

from typing import Any

from torch import fx

from fxprune.analysis.counts.ledger import Count
from fxprune.analysis.counts.numbers import made_anew
from fxprune.graph.size_reads import ALL, size_read
from fxprune.passes.shrinking.steps.draft import Draft
from fxprune.passes.shrinking.steps.pin_sizes import restored
from fxprune.rules.axes import Axis, Product

__all__ = ["count_kept"]


def count_kept(draft: Draft) -> None:
    """Compute numbers that count what shrinks of what is kept.

    Needs: a graph that reads the sizes of what is kept, before `pin_sizes`, which the new numbers do not
    meet.  Guarantees: other numbers are as they were.
    """
    for node, counts in draft.analysis.graph.counts.items():
        for count in counts:
            if not count.atoms.isdisjoint(draft.selection.masks):
                _write(draft, node, count)


def _write(draft: Draft, node: fx.Node, count: Count) -> None:
    new = draft.new_of[node]
    graph = draft.graph

    def call(old: fx.Node, args: tuple[Any, ...]) -> Any:
        if old.op == "call_function" and not any(isinstance(arg, fx.Node) for arg in args):
            return old.target(*args, **old.kwargs)  # type: ignore[operator]
        return graph.create_node(old.op, old.target, args, dict(old.kwargs))

    def told(place: tuple[fx.Node, int | str]) -> float | None:
        return count.written(place, draft.selection.size)

    with graph.inserting_before(new):
        number = made_anew(count.number, (node, count.place), told, lambda n: _read(draft, n, count), call)
    if isinstance(count.place, int):
        new.update_arg(count.place, number)
    else:
        new.update_kwarg(count.place, number)


def _read(draft: Draft, node: fx.Node, count: Count) -> Any:
    """Read the sizes of what is kept of the axes that are counted, and of others what they were."""
    of, dim = size_read(node) or (node, None)
    axes = draft.analysis.axes[of][0]
    if dim is not None or all(count.counts(axis) or not draft.selection.shrinks(axis) for axis in axes):
        copy = draft.graph.node_copy(node, lambda n: draft.new_of[n])
        whole = Product.of(axes) if dim == ALL else None if dim is None else axes[dim]
        return copy if whole is None else _one(draft, copy, whole, count)
    sizes = [draft.graph.call_method("size", (draft.new_of[of], d)) for d in range(len(axes))]
    return tuple(_one(draft, size, axis, count) for size, axis in zip(sizes, axes, strict=True))


def _one(draft: Draft, size: fx.Node, axis: Axis, count: Count) -> Any:
    if draft.selection.shrinks(axis) and not count.counts(axis):
        return restored(size, axis, draft.selection)
    return size
