"""How many parts code takes of a tensor: `for frame in x.unbind(1)`, `len(x.split(16, 2))`.

A graph takes as many as the example has, so a guard checks the count; not where a weight or a number in the
code fixes it (`qkv.reshape(b, n, 3, heads, -1).unbind(2)`, `self.to_qkv(x).chunk(3, -1)`).
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from fxprune.graph.op_names import op_name
from fxprune.graph.own_nodes import guard_branch
from fxprune.rules.modules import native

if TYPE_CHECKING:
    from fxprune.capture.symbolic.tracer import Tracer

__all__ = ["guard_count", "is_given"]

_LEN = len  # Python's own: while code is traced another stands in its place, which no file holds
_OF_LISTS = {operator.mul, operator.add}
_CUTS = {"unbind": 1, "split": 2, "chunk": 2, "unsafe_split": 2, "unsafe_chunk": 2}  # where `dim` stands
_SPLITS = {"tensor_split", "hsplit", "vsplit", "dsplit"}
_SAME_SHAPE = {
    *("layer_norm", "rms_norm", "batch_norm", "group_norm", "instance_norm", "dropout", "contiguous"),
    *("clone", "relu", "relu6", "gelu", "silu", "sigmoid", "tanh", "softmax", "mish", "elu", "leaky_relu"),
}


def guard_count(tracer: Tracer, parts: fx.Proxy, count: int) -> None:
    """Guard that a call cuts its tensor into so many parts, where that may follow the input."""
    node = parts.node
    if node.target is operator.getitem and isinstance(node.args[1], slice):  # `x.unbind(1)[2:]`
        return _guard_whole(tracer, node.args[0])
    if node.target in _OF_LISTS and _is_list(tracer, node):  # `[0] * x.shape[1]`
        return _guard(tracer, parts, count)
    if is_given(node, tracer.decisions.structure_of) and _is_of_object(
        node
    ):  # `for level in features.levels` of an argument
        return _guard(tracer, parts, count)
    if node.op in ("call_function", "call_method") and op_name(node.target) in _SPLITS:
        return _guard(tracer, parts, count)
    at = _CUTS.get(op_name(node.target)) if node.op in ("call_function", "call_method") else None
    if at is None or len(node.args) == 0:
        return
    given = _argument(node, 1, "split_size_or_sections", "split_size")
    dim = _argument(node, at, "dim", default=0)
    cut_by_list = at == 2 and isinstance(given, (list, tuple))
    if cut_by_list or (isinstance(dim, int) and _is_fixed(tracer, node.args[0], dim)):
        return
    _guard(tracer, parts, count)


def is_given(node: fx.Node, value_of: Callable[[fx.Node], Any]) -> bool:
    """Is a node an input, or a part of one: `batch["mask"]`, `batch.get("mask")`, `options.levels[0]`?

    value_of: what a node gives for the example; a part of a tensor is no part of an input.
    """
    wholes = []
    while _takes_part(node) and isinstance(node.args[0], fx.Node):
        node = node.args[0]
        wholes.append(node)
    return node.op == "placeholder" and not any(isinstance(value_of(n), torch.Tensor) for n in wholes)


def _takes_part(node: fx.Node) -> bool:
    if node.op == "call_method":
        return bool(node.args) and not hasattr(torch.Tensor, str(node.target))
    return node.target in (getattr, operator.getitem)


def _is_of_object(node: fx.Node) -> bool:
    """Is it a part of an object, or what one gives?  (A layout guard counts what lists and dicts hold.)"""
    while _takes_part(node) and node.target is operator.getitem:
        node = node.args[0]  # type: ignore[assignment]
    return node.op != "placeholder"


def _guard_whole(tracer: Tracer, whole: Any) -> None:
    """Guard how many parts there are of which code takes some; of a shape, the rank is guarded."""
    if _is_list(tracer, whole):
        proxy = tracer.proxy(whole)
        guard_count(tracer, proxy, _LEN(tracer.decisions.structure_of(whole)))


def _is_list(tracer: Tracer, node: Any) -> bool:
    value = tracer.decisions.structure_of(node) if isinstance(node, fx.Node) else None
    return isinstance(value, (list, tuple)) and not isinstance(value, torch.Size)


def _guard(tracer: Tracer, parts: fx.Proxy, count: int) -> None:
    node = parts.node
    number = tracer.create_proxy("call_function", _LEN, (parts,), {})
    where = node.meta.get("where") or node.name
    tracer.create_proxy("call_function", guard_branch, (number, count), {"where": where})


def _argument(node: fx.Node, place: int, *names: str, default: Any = None) -> Any:
    if len(node.args) > place:
        return node.args[place]
    return next((node.kwargs[name] for name in names if name in node.kwargs), default)


def _is_fixed(tracer: Tracer, x: Any, dim: int) -> bool:
    """Is a dimension of a tensor as long for every input?  Not where that can't be told."""
    sizes: Any
    while isinstance(x, fx.Node):
        if x.op == "get_attr":
            return True
        name = op_name(x.target) if x.op in ("call_function", "call_method") else ""
        if x.op == "call_module":
            entry = native(tracer.root.get_submodule(str(x.target)))
            name = entry.op if entry is not None else ""
        if not x.args or (x.kwargs and name in ("reshape", "view", "unflatten", "permute")):
            return False  # by name: rare, and a guard does no harm
        if name == "linear":
            return _counted(tracer, x, dim) == -1
        if name in ("conv1d", "conv2d", "conv3d"):
            return _counted(tracer, x, dim) == -int(name[-2]) - 1
        if name in ("reshape", "view"):
            sizes = x.args[1] if isinstance(x.args[1], (list, tuple)) else x.args[1:]
            inside = -len(sizes) <= dim < len(sizes)
            return inside and isinstance(sizes[dim], int) and sizes[dim] != -1
        if name == "unflatten":
            sizes, at = x.args[2], _counted(tracer, x, dim)
            last = _counted(tracer, x.args[0], x.args[1]) == -1
            inside = last and isinstance(sizes, (list, tuple)) and -len(sizes) <= at
            return bool(inside and isinstance(sizes[at], int) and sizes[at] != -1)
        if name == "permute":
            sizes = x.args[1] if isinstance(x.args[1], (list, tuple)) else x.args[1:]
            dim = sizes[dim]
        elif name not in _SAME_SHAPE:
            return False
        x = x.args[0]
        if not isinstance(dim, int):
            return False
    return False


def _counted(tracer: Tracer, x: Any, dim: Any) -> int:
    """Count a dimension from the end: -1 is the last."""
    return dim if dim < 0 else dim - tracer.decisions.structure_of(x).ndim
