"""Write sums of ones as numbers again: how many elements are summed now."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

from torch import fx

from fxprune.passes.shrinking.steps.draft import Draft
from fxprune.passes.shrinking.steps.restore_sums import product, sizes_read
from fxprune.rules.registry import dims_of

__all__ = ["restore_counts"]


def restore_counts(draft: Draft) -> None:
    """Replace sums of ones by sizes that are read, or by what is left of the model's own number.

    Needs: copies of sums with `meta["counted"]`, as of `counts_of_sums`.  Guarantees: numbers that count what
    is kept.
    """
    named = {node.name: node for node in draft.new_of}
    for old, new in draft.new_of.items():
        if "counted" in old.meta:
            of, read = old.meta["counted"]
            number = _number(draft, old, new, named.get(of), read)
            _put(draft, new, number)


def _number(draft: Draft, old: fx.Node, new: fx.Node, of: fx.Node | None, read: Collection[int]) -> Any:
    """Return how many elements are summed: what shrinks as it is now, the rest as the model reads it."""
    x, kept = old.all_input_nodes[0].all_input_nodes[0], new.all_input_nodes[0].all_input_nodes[0]
    axes = draft.analysis.axes[x][0]
    dims = dims_of(old.kwargs["dim"], len(axes))  # type: ignore[arg-type]
    shrunk = [d for d in dims if draft.selection.positions(axes[d]) is not None]
    numbers: list[Any] = []
    written = math.prod(draft.selection.size(axes[d]) for d in dims if d not in read)
    if written != 1:
        numbers.append(written)
    with new.graph.inserting_before(new):
        numbers += [new.graph.call_method("size", (kept, d)) for d in shrunk if d in read]
    whole = [d for d in read if d not in shrunk]
    return product(new, [*numbers, *([sizes_read(draft, new, of, whole)] if whole else [])])


def _put(draft: Draft, new: fx.Node, number: Any) -> None:
    """Replace a sum of ones by a number, and what is computed of numbers alone by what it is."""
    ones = new.all_input_nodes[0]
    done: list[tuple[fx.Node, Any]] = [(new, number)]
    while done:
        node, value = done.pop()
        for user in [*node.users]:
            user.args = tuple(value if arg is node else arg for arg in user.args)
            if not user.all_input_nodes:
                done.append((user, user.target(*user.args)))  # type: ignore[operator]
        draft.graph.erase_node(node)
    if not ones.users:
        draft.graph.erase_node(ones)
