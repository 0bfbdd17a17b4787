"""Numbers that count what a reduction runs over: `x.sum(1) / x.shape[1]`, `x.var(1) * (n - 1) / n`."""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from fxprune.graph.op_names import op_name
from fxprune.graph.size_reads import ALL, dim_read, size_read
from fxprune.rules.registry import dims_of

__all__ = [
    "DIVISIONS",
    "REDUCTIONS",
    "SUMS",
    "Count",
    "arguments",
    "computed_of",
    "count_read",
    "operands",
    "renamed",
    "scaled",
]

DIVISIONS = {
    operator.truediv,
    torch.div,
    torch.true_divide,
    torch.ops.aten.div.Tensor,
    torch.ops.aten.div_.Tensor,
    torch.divide,
    *("div", "divide", "true_divide"),
}
_PRODUCTS = {
    operator.mul,
    torch.mul,
    torch.multiply,
    torch.ops.aten.mul.Tensor,
    torch.ops.aten.mul_.Tensor,
    *("mul", "multiply"),
}
_IN_PLACE = {torch.ops.aten.div_.Tensor, torch.ops.aten.mul_.Tensor}
_ARITHMETIC = {operator.add, operator.sub, operator.mul, operator.truediv}
_CASTS = {float, int, torch.sym_float, torch.sym_int}
SUMS = frozenset({torch.sum, torch.ops.aten.sum.default, torch.ops.aten.sum.dim_IntList, "sum"})
REDUCTIONS = SUMS | {
    *(torch.mean, torch.ops.aten.mean.default, torch.ops.aten.mean.dim, "mean"),
    *(torch.var, torch.ops.aten.var.correction, "var"),
}
_OPTIONS = {"dim", "axis", "keepdim", "keepdims", "dtype", "unbiased", "correction"}


def scaled(
    node: fx.Node,
    reductions: Collection[Any],
    products: Mapping[fx.Node, fx.Node] = MappingProxyType({}),
    views: Collection[str] = (),
) -> tuple[fx.Node, Any] | None:
    """Return the reduction that this node divides or multiplies by a number, and the number.

    products: what is such a product of which reduction.  views: what may be done with a reduction before.
    """
    if not _is_call(node) or node.target not in DIVISIONS | _PRODUCTS or len(node.args) != 2 or node.kwargs:
        return None
    total, number = operands(node)
    if node.target in _IN_PLACE and (views or not isinstance(total, fx.Node) or len(total.users) > 1):
        return None  # the sum itself, or a view of it, is read afterwards
    while isinstance(total, fx.Node) and total.args and _is_view(total, views):
        total = total.args[0]
    total = products.get(total, total)
    return (total, number) if _is_reduction(total, reductions) and _is_number(number) else None


def operands(node: fx.Node) -> tuple[Any, Any]:
    """Return what is divided, or multiplied, and the number that it is so by: `(1 / 49) * x.sum(1)`."""
    first, second = node.args
    turned = node.target in _PRODUCTS and (not isinstance(first, fx.Node) or _is_number(first))
    return (second, first) if turned else (first, second)


def _is_call(node: fx.Node) -> bool:
    """Is it a call of an op, not of a module that may have the name of one?"""
    return node.op in ("call_function", "call_method")


def _is_view(node: fx.Node, views: Collection[str]) -> bool:
    if not _is_call(node):
        return False
    if op_name(node.target) != "getitem":
        return op_name(node.target) in views
    places = node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],)
    return "getitem" in views and all(p is None or p is ... or p == slice(None) for p in places)


def _is_reduction(total: Any, reductions: Collection[Any]) -> bool:
    """Is this one of some plain reductions, of floating-point numbers and over some dimensions?"""
    if not isinstance(total, fx.Node) or not _is_call(total) or total.target not in reductions:
        return False
    if total.kwargs.keys() - _OPTIONS:
        return False
    value = total.args[0].meta.get("val") if total.args and isinstance(total.args[0], fx.Node) else None
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return False
    unordered = len(total.args) > 1 and isinstance(total.args[1], bool)  # x.var(False)
    return not unordered and total.kwargs.get("dtype") in (None, value.dtype)


def _is_number(number: Any) -> bool:
    value = number.meta.get("val") if isinstance(number, fx.Node) else number
    return isinstance(value, (int, float)) and value != 0


def arguments(total: fx.Node) -> tuple[fx.Node, list[int], bool]:
    """Return what is reduced, its dimensions, and whether they are kept."""
    x: Any = total.args[0]
    given = total.args[1] if len(total.args) > 1 else total.kwargs.get("axis")
    dim: Any = total.kwargs.get("dim", given)
    ndim = x.meta["val"].ndim
    return x, dims_of(dim, ndim), total.meta["val"].ndim == ndim


class Count(NamedTuple):
    """A number that counts elements: the product of a tensor's sizes, and of numbers for other dimensions.

    of: the tensor whose sizes are read: what is counted itself, or one of its shape that is needed anyway.
    """

    of: fx.Node
    dims: list[int]


def count_read(number: Any, x: fx.Node, dims: Sequence[int]) -> Count | None:
    """Return what a number is read off, if it counts x's elements along dimensions."""
    reads = _sizes(number)
    tensors, read = {of for of, _ in reads}, [d for _, d in reads]
    if len(tensors) != 1 or len({*read}) < len(read) or not {*read} <= {*dims}:
        return None
    (of,) = tensors
    shape = x.meta["val"].shape
    if of.meta["val"].shape != shape or number.meta["val"] != math.prod(shape[d] for d in dims):
        return None
    return Count(of, read) if of is x or not all(map(size_read, of.users)) else None


def _sizes(number: Any) -> list[tuple[fx.Node, int]]:
    """List the tensors and dimensions whose sizes make a number: `x.shape[1]`, `64 * x.shape[2]`."""
    if not isinstance(number, fx.Node):
        return []
    if number.target is operator.mul:
        found = [_sizes(n) for n in number.args if isinstance(n, fx.Node)]
        return [*itertools.chain(*found)] if all(found) else []
    whole, read = size_read(number), dim_read(number)
    if whole is not None and whole[1] == ALL:
        return [(whole[0], d) for d in range(whole[0].meta["val"].ndim)]
    return [read] if read is not None else []


def renamed(graph: fx.Graph, names: Mapping[str, str]) -> None:
    """Follow other names of nodes in what divisions note of the tensors whose sizes they read."""
    for node in graph.nodes:
        op, target, number, divides = node.meta.get("sum_over", (None,) * 4)
        if number in names:
            node.meta["sum_over"] = op, target, names[number], divides
        of, dims = node.meta.get("counted", (None, ()))
        if of in names:
            node.meta["counted"] = names[of], dims


def computed_of(number: Any, x: fx.Node, dims: Sequence[int], count: Callable[[Count], Any]) -> Any:
    """Compute a number anew, with what `count` gives of each of the counts that it is made of.

    Returns None for a number of other things.
    """
    if not isinstance(number, fx.Node):
        return number
    counted = count_read(number, x, dims)
    if counted is not None:
        return count(counted)
    if number.target in _CASTS:
        return computed_of(number.args[0], x, dims, count)
    if number.target not in _ARITHMETIC or number.kwargs:
        return None
    args = [computed_of(n, x, dims, count) for n in number.args]
    return None if None in args else number.graph.call_function(number.target, tuple(args))
