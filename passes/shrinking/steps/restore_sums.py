"""Write `sum(x) / 49` as the model does where the sum is over no channels: other inputs have other counts.

So is `sum(x) / y.shape[1]`.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx

from fxprune.errors import RewriteError
from fxprune.passes.shrinking.steps.draft import Draft
from fxprune.rules.registry import dims_of

__all__ = ["product", "restore_sums", "sizes_read"]


def restore_sums(draft: Draft) -> None:
    """Restore sums that are divided by the model's own number, over dimensions that stay whole.

    Needs: copies of means with `meta["sum_over"]`, as of `sums_to_means`.  Guarantees: a mean over the kept
    elements of those that shrink, and the model's number, or its reading, for the others.
    """
    named = {node.name: node for node in draft.new_of}
    for mean, new in draft.new_of.items():
        if "sum_over" in mean.meta and isinstance(mean.args[0], fx.Node):
            _restore(draft, mean, new, named)


def _restore(draft: Draft, mean: fx.Node, new: fx.Node, named: Mapping[str, fx.Node]) -> None:
    x = mean.args[0]
    assert isinstance(x, fx.Node)
    axes, shape = draft.analysis.axes[x][0], x.meta["val"].shape
    dim: Any = mean.kwargs.get("dim")
    dims, keepdim = dims_of(dim, len(shape)), bool(mean.kwargs.get("keepdim", False))
    shrunk = [d for d in dims if draft.selection.positions(axes[d]) is not None]
    whole = [d for d in dims if d not in shrunk]
    if not whole:
        return
    op, target, number, divides = mean.meta["sum_over"]
    if isinstance(number, str):
        number = sizes_read(draft, new, named.get(number), whole)
    elif shrunk:
        count = math.prod(shape[d] for d in shrunk)  # which the mean over the kept ones divides by
        number = number / count if divides else number * count
    with new.graph.inserting_before(new):
        value: Any = new.args[0]
        if shrunk:
            value = new.graph.call_function(torch.mean, (value,), {"dim": shrunk, "keepdim": True})
        value = new.graph.call_function(
            torch.sum, (value,), {"dim": whole, "keepdim": keepdim or bool(shrunk)}
        )
        value = new.graph.create_node(op, target, (value, number))
        if shrunk and not keepdim:
            value = new.graph.call_function(torch.squeeze, (value, tuple(dims)))
    value.meta = dict(new.meta)
    new.replace_all_uses_with(value)
    new.graph.erase_node(new)
    draft.new_of[mean] = value


def sizes_read(draft: Draft, before: fx.Node, of: fx.Node | None, dims: Sequence[int]) -> Any:
    """Return the product of a tensor's sizes, as nodes before another; of what shrinks, the model's own."""
    if of is None:
        raise RewriteError(
            f"{before.name} divides by a size of a tensor in a branch that is removed: keep it"
        )
    numbers: list[Any] = []
    axes = draft.analysis.axes[of][0]
    for d in dims:
        size: Any = of.meta["val"].shape[d]
        if draft.selection.positions(axes[d]) is None:
            with before.graph.inserting_before(before):
                size = before.graph.call_method("size", (draft.new_of[of], d))
        numbers.append(size)
    return product(before, numbers)


def product(before: fx.Node, numbers: Sequence[Any]) -> Any:
    """Multiply numbers, as nodes before another."""
    found = numbers[0] if numbers else 1
    for number in numbers[1:]:
        if isinstance(found, fx.Node) or isinstance(number, fx.Node):
            with before.graph.inserting_before(before):
                found = before.graph.call_function(operator.mul, (found, number))
        else:
            found *= number
    return found
