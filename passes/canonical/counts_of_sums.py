"""`sum(x ** 2) / (n - 1)` counts what it sums: over a shrinking axis, n is the number of what is kept.

So does `mean(x) * (n / (n - 1))`.  The count is written as the sum of ones, which is over kept elements
wherever sums are; the rewrite spells it as a number again (`restore_counts`).
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from fxprune.graph.op_names import op_name
from fxprune.passes.counts import (
    DIVISIONS,
    REDUCTIONS,
    Count,
    arguments,
    computed_of,
    scaled,
)

__all__ = ["counts_of_sums"]


def counts_of_sums(module: fx.GraphModule) -> fx.GraphModule:
    """Count by sums of ones what numbers of sums, means and variances count.

    Needs: `meta["val"]`; after `sums_to_means`.  Guarantees: the same values for the example's sizes;
    `meta["counted"]` of each sum of ones holds the name of the tensor whose sizes the model reads, and which.
    """
    products: dict[fx.Node, fx.Node] = {}  # what is scaled once already -> what is reduced
    for node in list(module.graph.nodes):
        scaling = scaled(node, REDUCTIONS, products)
        if scaling is None:
            continue
        total, number = scaling
        products[node] = total
        with module.graph.inserting_before(node):
            counted = _counted(node, total, number)
        if counted is not None:
            node.args = tuple(counted if arg is number else arg for arg in node.args)
    module.graph.eliminate_dead_code()
    return module


def _counted(node: fx.Node, total: fx.Node, number: Any) -> fx.Node | None:
    """Return the number as a tensor that is computed of sums of ones."""
    x, dims, keepdim = arguments(total)

    def count(read: Count) -> fx.Node:
        ones = node.graph.call_function(torch.ones_like, (x,))
        ones.meta["val"] = torch.ones_like(x.meta["val"])
        made = node.graph.call_function(torch.sum, (ones,), {"dim": dims, "keepdim": keepdim})
        made.meta["counted"] = read.of.name, tuple(read.dims)
        return made

    if isinstance(number, fx.Node):
        counted = computed_of(number, x, dims, count)
    elif node.target in DIVISIONS and _is_unbiased(number, x, dims):
        counted = node.graph.call_function(operator.sub, (count(Count(x, [])), 1))
    else:
        return None
    for made in _made_before(counted):
        made.meta |= {k: v for k, v in node.meta.items() if k in ("where", "module")}
        made.meta.setdefault("val", torch.ones_like(total.meta["val"]))
    return counted if isinstance(counted, fx.Node) else None


def _made_before(number: Any) -> list[fx.Node]:
    """List the nodes without a value that a number is made of."""
    if not isinstance(number, fx.Node) or "val" in number.meta:
        return []
    return [number, *(made for n in number.all_input_nodes for made in _made_before(n))]


def _is_unbiased(number: float, x: fx.Node, dims: Sequence[int]) -> bool:
    """Is this the number of squares that are summed, less one?"""
    if number != math.prod(x.meta["val"].shape[d] for d in dims) - 1:
        return False
    if op_name(x.target) in ("pow", "square"):
        return x.args[1:] in ((), (2,), (2.0,)) and not x.kwargs
    return op_name(x.target) == "mul" and len(x.args) == 2 and x.args[0] is x.args[1]
