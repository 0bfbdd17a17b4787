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

    Needs: `meta["val"]`.  Guarantees: the same values, for the example's sizes where the number is a literal:
    then `meta["sum_over"]` says what it was: op, target, number, and whether it divided by that.
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
        if not isinstance(node.args[1], fx.Node):
            mean.meta["sum_over"] = node.op, node.target, node.args[1], node.target in _DIVISIONS
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
    if isinstance(number, fx.Node) and _dims_read(number, value.shape) != sorted(dims):
        return None
    count = math.prod(value.shape[d] for d in dims)
    divides = divisor == count if node.target in _DIVISIONS else math.isclose(divisor * count, 1)
    return total if divides else None


def _dims_read(number: fx.Node, shape: torch.Size) -> list[int] | None:
    """List the dimensions whose sizes make a number, read off tensors of a shape, if they do."""
    if number.target is operator.mul:
        found = [_dims_read(n, shape) if isinstance(n, fx.Node) else None for n in number.args]
        return None if None in found else sorted(d for dims in found for d in dims or ())
    of, dim = number.args if len(number.args) == 2 else (None, None)
    if number.target is operator.getitem and isinstance(of, fx.Node):  # x.shape[1], x.size()[1]
        of = of.args[0] if of.target == "size" or (of.target is getattr and of.args[1] == "shape") else None
    elif number.target not in ("size", torch.ops.aten.sym_size.int):
        return None
    value = of.meta.get("val") if isinstance(of, fx.Node) else None
    known = isinstance(value, Tensor) and value.shape == shape
    return [at(dim, len(shape))] if known and isinstance(dim, int) else None


def _arguments(total: fx.Node) -> tuple[fx.Node, Any, bool]:
    args = [*total.args, *[None] * 3]
    x: Any = args[0]
    dim: Any = total.kwargs.get("dim", args[1])
    return x, dim, bool(total.kwargs.get("keepdim", total.kwargs.get("keepdims", args[2])))
