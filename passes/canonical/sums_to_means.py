"""sum(x) / n over n elements is a mean: say so, since a mean over a shrinking axis is over what is kept.

Over an axis that follows the input, `sum(x) / 49` is a mean for the example's size alone: the rewrite spells
it as it was where nothing shrinks (`restore_sums`).
"""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
from torch import Tensor, fx

from fxprune.rules.registry import at, dims_of

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
        number = node.args[1]
        of = _read_off(number) if isinstance(number, fx.Node) else None
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
    total, number = node.args
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
    if isinstance(number, fx.Node):
        of = _read_off(number)
        if (
            of is None
            or _dims_read(number, value.ndim) != sorted(dims)
            or of.meta["val"].shape != value.shape
        ):
            return None
        if of is not x and all(map(_reads_sizes, of.users)):
            return None  # nothing would keep it
    count = math.prod(value.shape[d] for d in dims)
    divides = divisor == count if node.target in _DIVISIONS else math.isclose(divisor * count, 1)
    return total if divides else None


def _read_off(number: fx.Node) -> fx.Node | None:
    """Return the one tensor whose sizes make a number: `x.shape[1]`, `x.size(1) * x.shape[2]`."""
    if number.target is operator.mul:
        found = {_read_off(n) if isinstance(n, fx.Node) else None for n in number.args}
        return found.pop() if len(found) == 1 else None
    of = number.args[0] if len(number.args) == 2 else None
    if number.target is operator.getitem and isinstance(of, fx.Node):
        of = of.args[0] if _reads_sizes(of) else None
    elif not _reads_sizes(number):
        return None
    return of if isinstance(of, fx.Node) and isinstance(of.meta.get("val"), Tensor) else None


def _reads_sizes(node: fx.Node) -> bool:
    asks = node.target is getattr and node.args[1] == "shape"
    return asks or node.target in ("size", torch.ops.aten.sym_size.int)


def _dims_read(number: fx.Node, ndim: int) -> list[int]:
    """List the dimensions whose sizes make a number that is read off a tensor."""
    if number.target is operator.mul:
        return sorted(d for n in number.args if isinstance(n, fx.Node) for d in _dims_read(n, ndim))
    return [at(number.args[1], ndim)] if isinstance(number.args[1], int) else []


def _arguments(total: fx.Node) -> tuple[fx.Node, Any, bool]:
    args = [*total.args, *[None] * 3]
    x: Any = args[0]
    dim: Any = total.kwargs.get("dim", args[1])
    return x, dim, bool(total.kwargs.get("keepdim", total.kwargs.get("keepdims", args[2])))
