"""Writes in place: as values, and which of them act through memory, where no axis sees them."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxprune.graph.op_names import op_name
from fxprune.graph.own_nodes import written

__all__ = [
    *("FILLS", "VIEWS", "hidden_writes", "is_view_of_input", "shares_memory", "state_of", "value_of_write"),
    *(
        "is_itself",
        "may_be_one",
        "maybe_itself",
        "writes_by_layout",
        "writes_in_place",
        "writes_through",
        "written",
        "written_state",
    ),
]

# Ops that return (part of) the tensor they are given, laid out otherwise.
VIEWS = {
    *("getitem", "view", "reshape", "permute", "transpose", "expand", "unbind", "chunk", "split", "select"),
    *("slice", "narrow", "squeeze", "unsqueeze", "flatten", "unflatten", "t", "detach", "alias", "view_as"),
    *("split_with_sizes", "movedim", "swapaxes", "diagonal", "unfold", "_unsafe_view", "getattr"),
}


# Ops that return the very tensor that they are given, where there is nothing to do.
_ITSELF = {
    *("contiguous", "to", "type_as", "type", "float", "double", "half", "bfloat16", "cpu", "cuda"),
    *("dropout", "dropout1d", "dropout2d", "dropout3d", "feature_dropout", "alpha_dropout", "ravel"),
    *("long", "int", "short", "bool", "char", "byte", "flatten", "requires_grad_"),
    *("real", "atleast_1d", "atleast_2d", "atleast_3d", "positive", "conj", "resolve_conj", "resolve_neg"),
}
# And others that may share its memory.
_MAYBE_ITSELF = _ITSELF | {
    *("expand_as", "broadcast_to", "reshape_as", "tensor_split", "hsplit", "vsplit", "dsplit"),
    *("unsafe_chunk", "moveaxis", "swapdims", "adjoint", "imag", "view_as_real", "view_as_complex"),
    "squeeze_",
}


# What a tensor keeps whatever is written to it.
_FACTS = {"shape", "ndim", "dtype", "device", "layout", "requires_grad"}


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
    memory = _Memory(graph)

    def is_hidden(node: fx.Node) -> bool:
        if "written" in node.meta:
            return memory.read_later(node, node.meta["written"])
        if not writes_in_place(node, root):
            return False
        return not node.users or memory.read_later(node, node.args[0] if node.args else None)

    return list(filter(is_hidden, graph.nodes))


def writes_through(graph: fx.Graph, layers: Collection[fx.Node]) -> list[fx.Node]:
    """Return the mutable ops that reach through layers which may return the very tensor they are given.

    A tensor on the one side of such a layer is read after the one on its other side was written to.
    """
    apart, together = _Memory(graph), _Memory(graph, {*layers})
    return [
        node
        for node in graph.nodes
        if isinstance(node.target, torch._ops.OpOverload)
        and node.target._schema.is_mutable
        and together.stale(node, node.args[0]) - apart.stale(node, node.args[0])
    ]


# Ops that return a view of what they are given if it lies in memory as they need it, and a copy if not.
_COPIES_BY_LAYOUT = {"contiguous", "reshape", "flatten", "ravel", "alias"}  # as export has `contiguous`


def writes_by_layout(graph: fx.Graph) -> list[fx.Node]:
    """Return the mutable ops of which it depends on how inputs lie in memory what they reach."""
    passing = {n for n in graph.nodes if n.op != "placeholder" and op_name(n.target) in _COPIES_BY_LAYOUT}
    if not passing:
        return []
    views, copies = _Memory(graph, passing), _Memory(graph, copies=passing)

    def differs(node: fx.Node) -> bool:
        written_to = views.base(node.args[0])
        of_input = isinstance(written_to, fx.Node) and written_to.op == "placeholder"
        reaches_less = of_input and copies.base(node.args[0]) is not written_to
        return reaches_less or views.stale(node, node.args[0]) != copies.stale(node, node.args[0])

    mutable = (n for n in graph.nodes if isinstance(n.target, torch._ops.OpOverload))
    return [n for n in mutable if n.target._schema.is_mutable and n.args and differs(n)]


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


def maybe_itself(node: fx.Node) -> bool:
    """May a node be the very tensor that it is given?"""
    if node.op == "call_module":
        return bool(node.meta.get("maybe_itself"))
    return node.op in ("call_function", "call_method") and is_itself(op_name(node.target))


def may_be_one(a: object, b: object) -> bool:
    """May two values of a trace be one tensor, though their stand-ins are two?"""
    if a is b or not (isinstance(a, fx.Proxy) and isinstance(b, fx.Proxy)):
        return False
    roots = [a.node, b.node]
    for i, node in enumerate(roots):
        while maybe_itself(node) and isinstance(node.args[0], fx.Node):
            node = node.args[0]
        roots[i] = node
    return roots[0] is roots[1] or all(node.op == "placeholder" for node in roots)


def is_itself(op: str) -> bool:
    """May an op of this name return the very tensor that it is given?"""
    return op in _ITSELF


def is_view_of_input(node: fx.Node) -> bool:
    """Is a node surely a view of an input of the model?"""
    while node.args and isinstance(node.args[0], fx.Node) and op_name(node.target) in VIEWS:
        node = node.args[0]
    return node.op == "placeholder"


def written_state(graph: fx.Graph, root: nn.Module) -> set[str]:
    """Return the names of the model's own tensors that the graph changes."""
    return {name for node in graph.nodes if (name := state_of(node, root)) is not None}


def state_of(node: fx.Node, root: nn.Module) -> str | None:
    """Return the name of the model's own tensor that this node writes to, itself or a view of it."""
    base = _base(node.args[0]) if node.args else None
    if not isinstance(base, fx.Node) or base.op != "get_attr":
        return None
    return str(base.target) if writes_in_place(node, root) else None


def _base(tensor: Any) -> Any:
    """Return the tensor whose memory this one is, or is a part of, or may be."""
    while isinstance(tensor, fx.Node) and _is_view(tensor) and tensor.args:
        tensor = tensor.args[0]
    return tensor


class _Memory:
    """Which nodes of a graph may share memory: views, and what a tensor is after each write to it.

    through: layers that may return what they are given, beside those that are known as such.
    copies: nodes that do not, though they may elsewhere.
    """

    def __init__(
        self, graph: fx.Graph, through: Collection[fx.Node] = (), copies: Collection[fx.Node] = ()
    ) -> None:
        self.order = {node: i for i, node in enumerate(graph.nodes)}
        self.through, self.copies = through, copies
        self.written: dict[fx.Node, list[fx.Node]] = defaultdict(list)
        for node in graph.nodes:
            if "written" in node.meta:
                self.written[node.meta["written"]].append(node)

    def read_later(self, write: fx.Node, target: Any) -> bool:
        """Is a tensor that stands for the target's memory as it was before a write read after it?"""
        base = self.base(target)
        if isinstance(base, fx.Node) and base.op == "get_attr":
            return True  # the model's own tensor
        return bool(self.stale(write, target))

    def stale(self, write: fx.Node, target: Any) -> set[fx.Node]:
        """Return the nodes after a write that read what the target's memory was before it."""
        base, now = self.base(target), self.order[write]
        if not isinstance(base, fx.Node):
            return set()
        known, front = {base}, [base]
        while front:
            at = front.pop()
            more = [n for n in at.users if self._is_view(n)] + self.written[at]
            front += [n for n in more if n not in known and n is not write]
            known.update(more)
        before = known - _contents(write)
        readers = {
            user for n in before if self.order.get(n, -1) < now for user in n.users if not _puts_back(user, n)
        }
        return {user for user in readers if self.order.get(user, -1) > now and not _passes_on(user, write)}

    def base(self, tensor: Any) -> Any:
        """Return what the memory of a tensor belongs to."""
        while isinstance(tensor, fx.Node):
            if "written" in tensor.meta:
                tensor = tensor.meta["written"]
            elif self._is_view(tensor) and tensor.args:
                tensor = tensor.args[0]
            else:
                break
        return tensor

    def _is_view(self, node: fx.Node) -> bool:
        return node in self.through or (node not in self.copies and _is_view(node))


def _contents(write: fx.Node) -> set[fx.Node]:
    """Return the nodes that are what a write leaves: itself, and the part of a tensor that it puts back."""
    own = {write}
    while write.target is written and isinstance(write.args[2], fx.Node) and "written" in write.args[2].meta:
        write = write.args[2]
        own.add(write)
    return own


def _puts_back(node: fx.Node, tensor: fx.Node) -> bool:
    """Does the node write to the model's input or buffer what its code left there?"""
    return node.target is torch.ops.aten.copy_.default and node.args[0] is tensor


def _passes_on(node: fx.Node, write: fx.Node) -> bool:
    """Does the node put what was written to a view into what it is a view of?"""
    if node.target is not written or not isinstance(node.args[2], fx.Node):
        return False
    return node.args[2] is write or _passes_on(node.args[2], write)


def _is_view(node: fx.Node) -> bool:
    if node.op == "call_module":
        return bool(node.meta.get("maybe_itself"))
    named = node.op in ("call_function", "call_method")
    if node.target is getattr and node.args[1] in _FACTS:
        return False
    return named and op_name(node.target) in VIEWS | _MAYBE_ITSELF
