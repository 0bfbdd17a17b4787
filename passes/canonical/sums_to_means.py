"""sum(x) / n over n elements is a mean: say so, since a mean over a shrinking axis is over what is kept.

Over an axis that follows the input, `sum(x) / 49` is a mean for the example's size alone: the rewrite spells
it as it was where nothing shrinks (`restore_sums`).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import fx

from fxprune.passes.counts import DIVISIONS, SUMS, arguments, count_read, scaled

__all__ = ["sums_to_means"]


def sums_to_means(module: fx.GraphModule) -> fx.GraphModule:
    """Make means of sums that are divided by the number of their elements.

    Needs: `meta["val"]`.  Guarantees: the same values for the example's sizes; where the number is not read
    off what is summed, `meta["sum_over"]` says what was written: the operator, the number or the name of the
    tensor that it is read off (its dimensions are the summed ones), and whether it divides.
    """
    for node in list(module.graph.nodes):
        total, number = _divided_sum(node) or (None, None)
        if total is None:
            continue
        x, dims, keepdim = arguments(total)
        whole = len(dims) == x.meta["val"].ndim and not keepdim
        options: dict[str, Any] = {} if whole else {"dim": dims, "keepdim": keepdim}
        with module.graph.inserting_before(node):
            mean = module.graph.call_function(torch.mean, (x,), options)
        mean.meta = dict(node.meta)
        read = count_read(number, x, dims)
        of = read.of if read else None
        if of is not x:
            mean.meta["sum_over"] = node.op, node.target, of.name if of else number, node.target in DIVISIONS
        node.replace_all_uses_with(mean)
        module.graph.erase_node(node)
    module.graph.eliminate_dead_code()
    return module


def _divided_sum(node: fx.Node) -> tuple[fx.Node, Any] | None:
    """Return the sum that this node divides by the number of its elements, if it does, and the number."""
    total, number = scaled(node, SUMS) or (None, None)
    if total is None:
        return None
    x, dims, _ = arguments(total)
    if isinstance(number, fx.Node):
        read = count_read(number, x, dims)
        if read is None or len(read.dims) < len(dims):
            return None
    divisor = number.meta["val"] if isinstance(number, fx.Node) else number
    count = math.prod(x.meta["val"].shape[d] for d in dims)
    divides = divisor == count if node.target in DIVISIONS else math.isclose(divisor * count, 1)
    return (total, number) if divides else None
