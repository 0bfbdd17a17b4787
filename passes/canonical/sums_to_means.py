"""sum(x) / n over n elements is a mean: say so, since a mean over a shrinking axis is over what is kept.

Over an axis that follows the input, `sum(x) / 49` is a mean for the example's size alone: the rewrite spells
it as it was where nothing shrinks (`restore_sums`).
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from fxprune.graph.size_reads import dim_read, size_read
from fxprune.rules.registry import dims_of

__all__ = ["sums_to_means"]

_DIVISIONS = {
    operator.truediv,
    torch.div,
    torch.true_divide,
    torch.ops.aten.div.Tensor,
    "div",
    "true_divide",
}
_PRODUCTS = {operator.mul, torch.mul, torch.ops.aten.mul.Tensor, "mul"}
_OPTIONS = {"dim", "keepdim", "keepdims"}  # a dtype, say, is another sum
_SUMS = {torch.sum, torch.ops.aten.sum.dim_IntList, "sum"}


def sums_to_means(module: fx.GraphModule) -> fx.GraphModule:
    """Make means of sums that are divided by the number of their elements.

    Needs: `meta["val"]`.  Guarantees: the same values for the example's sizes; where the number is not read
    off what is summed, `meta["sum_over"]` says what was written: the operator, the number or the name of the
    tensor that it is read off (its dimensions are the summed ones), and whether it divides.
    """
    for node in list(module.graph.nodes):
        total = _divided_sum(node)
        if total is None:
            continue
        x, dim, keepdim = _arguments(total)
        with module.graph.inserting_before(node):
            options = {} if dim is None else {"dim": dim, "keepdim": keepdim}
            mean = module.graph.call_function(torch.mean, (x,), options)
        mean.meta = dict(node.meta)
        number = _operands(node)[1]
        of = _reads(number)[0][0] if isinstance(number, fx.Node) else None
        if of is not x:
            mean.meta["sum_over"] = node.op, node.target, of.name if of else number, node.target in _DIVISIONS
        node.replace_all_uses_with(mean)
        module.graph.erase_node(node)
    module.graph.eliminate_dead_code()
    return module


def _divided_sum(node: fx.Node) -> fx.Node | None:
    """Return the sum that this node divides by the number of its elements, if it does."""
    if node.target not in _DIVISIONS | _PRODUCTS or len(node.args) != 2 or node.kwargs:
        return None
    total, number = _operands(node)
    if not isinstance(total, fx.Node) or total.target not in _SUMS or total.kwargs.keys() - _OPTIONS:
        return None
    divisor = number.meta.get("val") if isinstance(number, fx.Node) else number
    if not isinstance(divisor, (int, float)) or divisor == 0:
        return None
    x, dim, _ = _arguments(total)
    value = x.meta.get("val")
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return None
    dims = dims_of(dim, value.ndim)
    if isinstance(number, fx.Node) and not _is_count(_reads(number), x, dims):
        return None
    count = math.prod(value.shape[d] for d in dims)
    divides = divisor == count if node.target in _DIVISIONS else math.isclose(divisor * count, 1)
    return total if divides else None


def _operands(node: fx.Node) -> tuple[Any, Any]:
    """Return what is divided, or multiplied, and the number that it is so by: `(1 / 49) * x.sum(1)`."""
    first, second = node.args
    turned = node.target in _PRODUCTS and not isinstance(first, fx.Node)
    return (second, first) if turned else (first, second)


def _is_count(reads: list[tuple[fx.Node, int]], x: fx.Node, dims: Sequence[int]) -> bool:
    """Are these x's sizes of some dimensions, or those of one tensor of its shape that is needed anyway?"""
    tensors = {of for of, _ in reads}
    if len(tensors) != 1 or sorted(d for _, d in reads) != sorted(dims):
        return False
    (of,) = tensors
    alike: bool = of.meta["val"].shape == x.meta["val"].shape
    return alike and (of is x or not all(map(size_read, of.users)))


def _reads(number: fx.Node) -> list[tuple[fx.Node, int]]:
    """List the tensors and dimensions whose sizes make a number: `x.shape[1]`, `x.size(1) * x.shape[2]`."""
    if number.target is operator.mul:
        found = [_reads(n) if isinstance(n, fx.Node) else [] for n in number.args]
        return [*itertools.chain(*found)] if all(found) else []
    read = dim_read(number)
    return [read] if read is not None else []


def _arguments(total: fx.Node) -> tuple[fx.Node, Any, bool]:
    args = [*total.args, *[None] * 3]
    x: Any = args[0]
    dim: Any = total.kwargs.get("dim", args[1])
    return x, dim, bool(total.kwargs.get("keepdim", total.kwargs.get("keepdims", args[2])))
