"""Find the layers that a tensor is a multiple of: scaled rows of their weights scale the tensor alone.

Through layout alone, or through what is linear as well: a rotary embedding of queries, in any spelling.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import fx
from torch.utils import _pytree as pytree

from fxprune.graph.op_names import op_name
from fxprune.graph.writes import VIEWS
from fxprune.rules.calls import Call, call_of
from fxprune.rules.registry import DEFAULT_RULES

__all__ = ["FEATURES", "PRODUCTS", "QUOTIENTS", "Multiple", "is_fact", "multiple_of"]

# Layers whose weights have a row for each feature, and the dimension of their results that counts features.
FEATURES = {"linear": -1, "layer_norm": -1, "rms_norm": -1, "conv1d": 1, "conv2d": 1, "batch_norm": 1}
PRODUCTS = ("mul", "multiply")
QUOTIENTS = ("div", "truediv", "divide", "true_divide")

_LAYOUT = VIEWS | {"contiguous", "clone", "split_by_sizes"}
_LINEAR = {
    *("neg", "to", "type_as", "type", "float", "double", "half", "bfloat16", "flip", "roll"),
    *("view_as_real", "view_as_complex", "real", "imag", "conj"),
}
_SUMS = {"add", "sub", "cat", "concat", "concatenate", "stack", "hstack", "vstack"}
_EMPTY = {"empty_like", "zeros_like", "new_empty", "new_zeros", "empty", "zeros"}
_FACTS = {"size", "sym_size", "dim", "ndim", "shape", "dtype", "device", "numel", "len", *_EMPTY}


@dataclass(frozen=True)
class Multiple:
    """A tensor that is a multiple of a layer's result, or of several together.

    nodes: from the layers to the tensor, in order.
    calls: the layer's, by its node; of several layers, where results of all are joined or added up.
    is_layout: nothing is computed in between.
    """

    nodes: tuple[fx.Node, ...]
    calls: Mapping[fx.Node, Call]
    is_layout: bool


def multiple_of(module: fx.GraphModule, tensor: fx.Node, reader: fx.Node) -> Multiple | None:
    """Find the layers that a tensor is a multiple of; None where there is none, or more would be scaled too.

    reader: what may be given the tensor scaled.
    """
    found = _Walk(module).to(tensor)
    return found if found is not None and not any(_others(found, reader)) else None


class _Walk:
    def __init__(self, module: fx.GraphModule) -> None:
        self.module = module
        self.known: dict[fx.Node, bool] = {}

    def to(self, tensor: fx.Node) -> Multiple | None:
        nodes, front, origins = {tensor}, [tensor], dict[fx.Node, Call]()
        is_layout = True
        while front:
            node = front.pop()
            call = self._call(node)
            if call is None:
                return None
            if call.plain_op in FEATURES:
                origins[node] = call
                continue
            operands = self._operands(node, call.plain_op)
            if not operands:
                return None
            is_layout = is_layout and call.plain_op in _LAYOUT
            front += [n for n in operands if n not in nodes]
            nodes.update(operands)
        if not origins:
            return None
        return Multiple(tuple(n for n in self.module.graph.nodes if n in nodes), origins, is_layout)

    def _operands(self, node: fx.Node, op: str) -> list[fx.Node]:
        """List what a node is a multiple of; nothing, if it is none."""
        given = node.all_input_nodes
        if op in _LAYOUT or op in _LINEAR:
            return given[:1]
        if op in _SUMS and node.args:
            leaves = pytree.tree_leaves(node.args[0] if op not in ("add", "sub") else node.args[:2])
            return given if all(isinstance(leaf, fx.Node) for leaf in leaves) else []
        if op == "written" and len(given) > 1:  # over what holds nothing: (tensor, index, value)
            return [n for n in (node.args[0], node.args[2]) if isinstance(n, fx.Node) and not _is_empty(n)]
        if op in PRODUCTS or op in QUOTIENTS:
            layers = [n for n in given if self._depends(n)]
            is_one = len(layers) == 1 and [*node.args].count(layers[0]) == 1
            return layers if is_one and (op in PRODUCTS or layers[0] is node.args[0]) else []
        return []

    def _depends(self, node: fx.Node) -> bool:
        """Is it computed from a layer's result, other than from its sizes or its type?"""
        if node not in self.known:
            self.known[node] = False
            front, seen = [node], {node}
            while front and not self.known[node]:
                at = front.pop()
                call = self._call(at)
                op = "" if call is None else call.plain_op
                self.known[node] = op in FEATURES
                inputs = at.all_input_nodes[:1] if op in _LINEAR else at.all_input_nodes
                more = () if is_fact(at) else inputs
                front += [n for n in more if n not in seen]
                seen.update(more)
        return self.known[node]

    def _call(self, node: fx.Node) -> Call | None:
        return call_of(node, self.module, DEFAULT_RULES) if node.op.startswith("call") else None


def _others(found: Multiple, reader: fx.Node) -> Iterator[fx.Node]:
    """List what else reads what would be scaled: not another part of what is taken apart, nor a size."""
    inside = {*found.nodes}
    for node in found.nodes:
        own = [user for user in node.users if user in inside]
        for user in node.users:
            if user in inside or is_fact(user) or _reads_type(user, node):
                continue
            if node is found.nodes[-1] and user is reader and _times(user, node) == 1:
                continue
            if not own or not all(_apart(_part(user), _part(other)) for other in own):
                yield user


_Part = tuple[object, ...]  # of a tensor or a tuple: ints and slices, from the first dimension


def _part(node: fx.Node) -> _Part:
    """Return which part of what it reads a node takes by literal indices; () for all of it."""
    if node.target is operator.getitem:
        index = node.args[1]
        return tuple(index) if isinstance(index, (tuple, list)) else (index,)
    if node.op.startswith("call") and op_name(node.target) in ("select", "narrow"):
        dim, *at = node.args[1:]
        if type(dim) is int and dim >= 0 and all(type(i) is int for i in at):
            first = at[0] if len(at) == 1 else slice(at[0], at[0] + at[1]) if len(at) == 2 else ...  # type: ignore[operator]
            return (*[slice(None)] * dim, first)
    return ()


def _apart(a: _Part, b: _Part) -> bool:
    """Have two parts no number in common, for all that their indices say?"""
    alike = len(a) == len(b) and not any(i is None for i in (*a, *b))
    for i, j in zip(a, b, strict=False):
        if i is j is ... and alike:
            continue
        if not isinstance(i, (int, slice)) or not isinstance(j, (int, slice)):
            return False  # (an ellipsis, None, a tensor: which dimensions those after it are of is not known)
        (start, end), (other_start, other_end) = _ends(i), _ends(j)
        if end <= other_start or other_end <= start:
            return True
    return False


def _ends(part: int | slice) -> tuple[float, float]:
    """Return a range that holds all that an index or a slice takes, as far as its numbers tell."""
    start, stop = (part.start, part.stop) if isinstance(part, slice) else (part, None)
    if not isinstance(part, slice) and part >= 0:
        stop = part + 1
    return (
        start if type(start) is int and start >= 0 else 0,
        stop if type(stop) is int and stop >= 0 else math.inf,
    )


def is_fact(node: fx.Node) -> bool:
    """Does a node ask what a tensor, or a list of its parts, is like: for a size, its dtype, its device?"""
    if node.target is getattr:
        return node.args[1] in _FACTS
    return node.op.startswith("call") and op_name(node.target) in _FACTS


def _reads_type(user: fx.Node, node: fx.Node) -> bool:
    """Is something else cast to a tensor's type?"""
    return (
        user.op.startswith("call") and op_name(user.target) in ("type_as", "to") and user.args[0] is not node
    )


def _is_empty(node: fx.Node) -> bool:
    return node.op.startswith("call") and op_name(node.target) in _EMPTY


def _times(user: fx.Node, node: fx.Node) -> int:
    return sum(leaf is node for leaf in pytree.tree_leaves((user.args, user.kwargs)))
