"""Writes in place: as values, and which of them act through memory, where no axis sees them."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxprune.graph.op_names import op_name
from fxprune.graph.own_nodes import written

__all__ = [
    *("FILLS", "VIEWS", "hidden_writes", "shares_memory", "state_of", "value_of_write"),
    *("writes_in_place", "written", "written_state"),
]

# Ops that return (part of) the tensor they are given, laid out otherwise.
VIEWS = {
    *("getitem", "view", "reshape", "permute", "transpose", "expand", "unbind", "chunk", "split", "select"),
    *("slice", "narrow", "squeeze", "unsqueeze", "flatten", "unflatten", "t", "detach", "alias", "view_as"),
    *("split_with_sizes", "movedim", "swapaxes", "diagonal", "unfold", "_unsafe_view", "getattr"),
}


# Ops that return the very tensor that they are given, where there is nothing to do.
_MAYBE_ITSELF = {
    *("contiguous", "to", "type_as", "type", "float", "double", "half", "bfloat16", "cpu", "cuda"),
    *("dropout", "dropout1d", "dropout2d", "dropout3d", "feature_dropout", "alpha_dropout", "ravel"),
    *(
        "expand_as",
        "broadcast_to",
        "reshape_as",
        "tensor_split",
        "hsplit",
        "vsplit",
        "dsplit",
        "unsafe_chunk",
    ),
    *("moveaxis", "swapdims", "adjoint", "real", "imag", "view_as_real", "view_as_complex", "squeeze_"),
    *("atleast_1d", "atleast_2d", "atleast_3d", "positive", "conj", "resolve_conj", "resolve_neg"),
}


# Methods that write without reading: `x[...] = 0`, `x[...] = y`.
FILLS = {"zero_", "fill_", "copy_"}


def shares_memory(index: Any) -> bool:
    """Is `x[index]` a view of x, whatever x is?  Lists and tensors copy what they pick."""
    entries = index if isinstance(index, tuple) else (index,)
    return all(e is None or e is ... or type(e) in (int, slice) for e in entries)


def value_of_write(method: str) -> str | None:
    """Name the method that returns what an in-place one writes: `add` for `add_`."""
    name = method[:-1] if method.endswith("_") and not method.endswith("__") else ""
    return name if callable(getattr(Tensor, name, None)) and name not in VIEWS else None


def hidden_writes(graph: fx.Graph, root: nn.Module) -> list[fx.Node]:
    """Return the writes whose effect reaches further than their own result.

    `x = x.relu_()` is a value by another name.  A write is hidden where nobody reads its result, or
    where the tensor written to, or one that shares its memory, is read again afterwards.
    """
    order = {node: i for i, node in enumerate(graph.nodes)}

    def is_hidden(node: fx.Node) -> bool:
        if "written" in node.meta:
            return _read_later(node, node.meta["written"], order)
        if not writes_in_place(node, root):
            return False
        return not node.users or _read_later(node, node.args[0] if node.args else None, order)

    return list(filter(is_hidden, graph.nodes))


def writes_in_place(node: fx.Node, root: nn.Module) -> bool:
    """Does the node change the tensor that it is given?"""
    if node.op == "call_module":
        return bool(getattr(root.get_submodule(str(node.target)), "inplace", False))
    if node.op not in ("call_function", "call_method"):
        return False
    if isinstance(node.target, torch._ops.OpOverload):
        return node.target._schema.is_mutable
    return _is_writes_name(op_name(node.target)) or node.kwargs.get("inplace") is True


@functools.lru_cache(1 << 12)
def _is_writes_name(name: str) -> bool:
    """Does a function or method of this name write, by the names that torch gives?"""
    in_place = name == "setitem" or (name.endswith("_") and name not in {"and_", "or_", "not_"})
    return (in_place and not name.endswith("__")) or name in {"iadd", "isub", "imul", "itruediv"}


def written_state(graph: fx.Graph, root: nn.Module) -> set[str]:
    """Return the names of the model's own tensors that the graph changes."""
    return {name for node in graph.nodes if (name := state_of(node, root)) is not None}


def state_of(node: fx.Node, root: nn.Module) -> str | None:
    """Return the name of the model's own tensor that this node writes to, itself or a view of it."""
    if not writes_in_place(node, root):
        return None
    base = _base(node.args[0]) if node.args else None
    return str(base.target) if isinstance(base, fx.Node) and base.op == "get_attr" else None


def _base(tensor: Any) -> Any:
    """Return the tensor whose memory this one is, or is a part of, or may be."""
    while isinstance(tensor, fx.Node) and _is_view(tensor) and tensor.args:
        tensor = tensor.args[0]
    return tensor


def _read_later(write: fx.Node, target: Any, order: dict[fx.Node, int]) -> bool:
    """Is anything that shares the target's memory read after the write?"""
    base = _base(target)
    if not isinstance(base, fx.Node):
        return False
    if base.op == "get_attr":
        return True  # the model's own tensor
    same_memory, front = {base}, [base]
    while front:
        views = [n for n in front.pop().users if _is_view(n) and n not in same_memory and n is not write]
        same_memory.update(views)
        front += views
    later = (user for alias in same_memory for user in alias.users if order[user] > order[write])
    return not all(_passes_on(user, write) for user in later)


def _passes_on(node: fx.Node, write: fx.Node) -> bool:
    """Does the node put what was written to a view into what it is a view of?"""
    if node.target is not written or not isinstance(node.args[2], fx.Node):
        return False
    return node.args[2] is write or _passes_on(node.args[2], write)


def _is_view(node: fx.Node) -> bool:
    if node.op == "call_module":
        return bool(node.meta.get("maybe_itself"))
    named = node.op in ("call_function", "call_method")
    return named and op_name(node.target) in VIEWS | _MAYBE_ITSELF
