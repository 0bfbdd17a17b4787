"""Writes in place: which of them act through memory, where no axis and no dead-code elimination sees them."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn

from fxprune.calls import op_name

__all__ = ["VIEWS", "hidden_writes", "writes_in_place"]

# Ops that return (part of) the tensor they are given, laid out otherwise.
VIEWS = {
    *("getitem", "view", "reshape", "permute", "transpose", "expand", "unbind", "chunk", "split", "select"),
    *("slice", "narrow", "squeeze", "unsqueeze", "flatten", "unflatten", "t", "detach", "alias", "view_as"),
    *("split_with_sizes", "movedim", "swapaxes", "diagonal", "unfold", "_unsafe_view", "getattr"),
}


def hidden_writes(graph: fx.Graph, root: nn.Module) -> list[fx.Node]:
    """The writes whose effect reaches further than their own result.

    `x = x.relu_()` is a value by another name.  A write is hidden where nobody reads its result, or
    where the tensor written to, or one that it is a view of, is read again afterwards.
    """
    order = {node: i for i, node in enumerate(graph.nodes)}
    return [n for n in graph.nodes if writes_in_place(n, root) and (not n.users or _read_later(n, order))]


def writes_in_place(node: fx.Node, root: nn.Module) -> bool:
    """Does the node change the tensor that it is given?"""
    if node.op == "call_module":
        return bool(getattr(_submodule(root, str(node.target)), "inplace", False))
    if node.op not in ("call_function", "call_method"):
        return False
    if isinstance(node.target, torch._ops.OpOverload):
        return node.target._schema.is_mutable
    name = op_name(node.target)
    in_place = name == "setitem" or (name.endswith("_") and name not in {"and_", "or_", "not_"})
    in_place = in_place and not name.endswith("__")
    return in_place or name in {"iadd", "isub", "imul", "itruediv"} or node.kwargs.get("inplace") is True


def _submodule(root: nn.Module, path: str) -> Any:
    return root.get_submodule(path)


def _read_later(write: fx.Node, order: dict[fx.Node, int]) -> bool:
    target = write.args[0] if write.args else None
    while isinstance(target, fx.Node):
        if any(order[user] > order[write] for user in target.users):
            return True
        if target.op == "get_attr":
            return True  # the model's own tensor
        if op_name(target.target) not in VIEWS or not target.args:
            return False
        target = target.args[0]
    return False
