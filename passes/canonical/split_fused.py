"""Queries, keys and values out of one projection: `(3 heads head_dim)` becomes three of `(heads head_dim)`.

A reshape that counts the parts in a dimension ties them: they shrink alike.  Cut apart before the
reshape, values may keep another width than queries and keys.

    b n (3 h d) -reshape-> b n 3 h d -permute-> 3 b h n d -unbind-> b h n d, ...
    b n (3 h d) -split-> b n (h d), ... -reshape-> b n h d -permute-> b h n d
"""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from fxprune.graph.op_names import op_name

__all__ = ["split_fused"]


def split_fused(module: fx.GraphModule) -> fx.GraphModule:
    """Cut apart what a reshape stacks only to be taken apart again.

    Needs: `meta["val"]`.  Guarantees: the same values by other nodes, which have no `meta["val"]` yet.
    """
    found = [fused for node in list(module.graph.nodes) if (fused := _fused(node)) is not None]
    for fused in found:
        _cut(fused)
    module.graph.eliminate_dead_code()
    return module


_NAMES = {  # of arguments, as torch spells them
    "reshape": ("input", "shape"),
    "view": ("input", "size"),
    "permute": ("input", "dims"),
    "transpose": ("input", "dim0", "dim1"),
    "select": ("input", "dim", "index"),
}


@dataclass(frozen=True)
class _Fused:
    """A reshape, the dimension that counts the parts, the permutes after it, and who takes which part."""

    reshape: fx.Node
    dim: int
    permutes: list[tuple[fx.Node, list[int]]]
    takers: list[tuple[fx.Node, int]]

    @property
    def count(self) -> int:
        return int(self.reshape.meta["val"].shape[self.dim])


def _fused(node: fx.Node) -> _Fused | None:
    if _name(node) not in ("reshape", "view") or not isinstance(_args(node)[1], (list, tuple)):
        return None
    before, after = _shape(_args(node)[0]), _shape(node)
    for dim in range(1, len(after) - 1):
        # More than 8 are heads or windows rather than parts of a projection.
        counts = 1 < after[dim] <= 8 and isinstance(_args(node)[1][dim], int)
        if not counts or math.prod(after[dim:]) != before[-1] or -1 in _args(node)[1][:dim]:
            continue
        permutes, last, at = _permuted(node, dim)
        takers = _takers(last, at)
        if takers is not None:
            return _Fused(node, dim, permutes, takers)
    return None


def _permuted(node: fx.Node, dim: int) -> tuple[list[tuple[fx.Node, list[int]]], fx.Node, int]:
    """Return the permutes in a row behind a node, and where the dimension ends up."""
    permutes = []
    while len(node.users) == 1 and (order := _order(next(iter(node.users)))) is not None:
        node = next(iter(node.users))
        permutes.append((node, order))
        dim = order.index(dim)
    return permutes, node, dim


def _order(node: fx.Node) -> list[int] | None:
    """Return the order of dimensions that a permute or transpose makes."""
    n = len(_shape(node)) if _has_shape(node) else 0
    if _name(node) == "permute" and isinstance(_args(node)[1], (list, tuple)):
        return [int(d) % n for d in _args(node)[1]]
    if _name(node) == "transpose":
        order = list(range(n))
        a, b = (int(d) % n for d in _args(node)[1:3])
        order[a], order[b] = order[b], order[a]
        return order
    return None


def _takers(node: fx.Node, dim: int) -> list[tuple[fx.Node, int]] | None:
    """Return (who, which) for each user of a node, if each takes a single index of the dimension."""
    takers: list[tuple[fx.Node, int]] = []
    for user in node.users:
        n, name = len(_shape(node)), _name(user)
        if name == "unbind" and (_argument(user, 1, "dim", 0) % n) == dim:
            for part in user.users:
                if _name(part) != "getitem" or not isinstance(_args(part)[1], int):
                    return None
                takers.append((part, _args(part)[1]))
        elif name == "select" and _args(user)[1] % n == dim and isinstance(_args(user)[2], int):
            takers.append((user, _args(user)[2]))
        elif name == "getitem" and isinstance(_args(user)[1], int) and dim == 0:
            takers.append((user, _args(user)[1]))
        else:
            return None
    return takers or None


def _cut(fused: _Fused) -> None:
    graph, source = fused.reshape.graph, _args(fused.reshape)[0]
    sizes = [size for d, size in enumerate(_args(fused.reshape)[1]) if d != fused.dim]
    width = _shape(source)[-1] // fused.count
    with graph.inserting_before(fused.reshape):
        parts = graph.call_function(torch.split, (source, width, -1))
    for taker, index in fused.takers:
        with graph.inserting_before(taker):
            part = graph.call_function(operator.getitem, (parts, index % fused.count))
            part = graph.call_method("reshape", (part, list(sizes)))
            at = fused.dim
            for _, order in fused.permutes:
                rest = [d - (d > at) for d in order if d != at]
                at = order.index(at)
                part = graph.call_method("permute", (part, rest))
        taker.replace_all_uses_with(part)


def _name(node: fx.Node) -> str:
    return op_name(node.target) if node.op in ("call_function", "call_method") else ""


def _has_shape(node: fx.Node) -> bool:
    return hasattr(node.meta.get("val"), "shape")


def _shape(node: Any) -> list[int]:
    return [int(size) for size in node.meta["val"].shape]


def _argument(node: Any, position: int, name: str, default: int) -> int:
    return int(node.args[position] if len(node.args) > position else node.kwargs.get(name, default))


def _args(node: fx.Node) -> Any:
    names = _NAMES.get(_name(node), ())[len(node.args) :]
    return *node.args, *(node.kwargs[name] for name in names if name in node.kwargs)
