"""Compare the graph of an instance's own code with a pruned one, node by node.

Both come from one graph: the original's.  The instance's is a capture of the same code, so it has the same
nodes in the same order, with other numbers; the pruned one is a copy, so its nodes have the same names.
Where operations, tensors and numbers are equal, both compute the same: for every batch and image size that
the graph takes, in both modes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxprune.compiler.native.size_expressions import SizeReader, same_size, value_of
from fxprune.graph.op_names import op_name
from fxprune.graph.own_nodes import is_guard, split_by_sizes
from fxprune.graph.tensors import module_of, tensor_at

__all__ = ["Difference", "differences"]


SPLITS = {"chunk", "split", "tensor_split", "hsplit", "unsafe_chunk", "unsafe_split"}


@dataclass(frozen=True)
class Difference:
    """Where two graphs differ.

    module: the path of the module whose code makes the node.
    got, wanted: the number that its code has there, and the one that it should; None, None: more than that.
    """

    module: str
    got: Any = None
    wanted: Any = None

    @property
    def is_number(self) -> bool:
        return self.wanted is not None


def differences(
    original: fx.GraphModule, own: fx.GraphModule, pruned: fx.GraphModule
) -> Iterator[Difference]:
    """List where the graph of an instance's own code is another function than a pruned graph.

    Nothing, if they compute the same.

    Args:
        original: the graph that the pruned one was made of.
        own: a capture of the instance, as the original was captured; nodes have their `meta["val"]`.
    """
    before, after = [*original.graph.nodes], [*own.graph.nodes]
    there = {a.name: b for a, b in zip(before, after, strict=False)}
    if len(before) != len(after):
        yield _first_other(before, after)
        return
    kept = {node.name for node in pruned.graph.nodes}
    for a, b in zip(before, after, strict=True):
        if not _same_operation(a, b) or [there[n.name] for n in a.all_input_nodes] != b.all_input_nodes:
            yield Difference(module_of(b))
            return
        if a.name not in kept and b.is_impure() and not is_guard(b):
            yield Difference(module_of(b))
    live, reader = _live(pruned.graph), SizeReader(there)
    for node in pruned.graph.nodes:
        if node not in live or reader.is_size(node):
            continue  # a number is compared where it is used
        if node.name in there:
            yield from _Pair(node, there[node.name], reader, pruned, own).differences()
        else:
            yield Difference(module_of(node))


def _live(graph: fx.Graph) -> set[fx.Node]:
    """Find the nodes that an output, a write or a guard needs."""
    live: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        if node in live or node.is_impure():
            live.update([node], node.all_input_nodes)
    return live


def _first_other(before: list[fx.Node], after: list[fx.Node]) -> Difference:
    pairs = zip(before, after, strict=False)
    return Difference(next((module_of(b) for a, b in pairs if not _same_operation(a, b)), ""))


def _same_operation(a: fx.Node, b: fx.Node) -> bool:
    return a.op == b.op and (a.target is b.target or a.target == b.target)


class _Pair:
    """A node of the pruned graph, and the one of the instance's that stands for the same."""

    def __init__(
        self, node: fx.Node, own: fx.Node, reader: SizeReader, pruned: fx.GraphModule, whole: fx.GraphModule
    ) -> None:
        self.node, self.own, self.reader = node, own, reader
        self.modules = whole, pruned

    def differences(self) -> Iterator[Difference]:
        node, own = self.node, self.own
        if node.target is split_by_sizes and own.target is not split_by_sizes:
            yield from () if self._same_split() else [self._other()]
            return
        if type(own.meta.get("val")) is bool and node.op == "call_function" and not node.all_input_nodes:
            wanted = node.target(*node.args, **node.kwargs)  # type: ignore[operator]
            yield from () if wanted is own.meta["val"] else [self._other()]
            return
        if not _same_operation(node, own) or not self._same_holding():
            yield self._other()
            return
        yield from self._between([*own.args], [*node.args])
        if own.kwargs.keys() != node.kwargs.keys():
            yield self._other()
            return
        for name, value in node.kwargs.items():
            if name != "where":  # a guard's words
                yield from self._between(own.kwargs[name], value)

    def _same_split(self) -> bool:
        """Does another kind of split (`chunk`) give parts of these sizes?"""
        x, sizes, dim = (*self.node.args, *self.node.kwargs.values())
        parts = self.own.meta.get("val")
        if op_name(self.own.target) not in SPLITS or not isinstance(parts, (list, tuple)):
            return False
        there = (*self.own.args, *self.own.kwargs.values())
        same = isinstance(dim, int) and dim in there and self.reader.read(x) is there[0]
        return same and [part.shape[dim] for part in parts] == [*sizes]  # type: ignore[misc]

    def _other(self, got: Any = None, wanted: Any = None) -> Difference:
        return Difference(module_of(self.own), got, wanted)

    def _same_holding(self) -> bool:
        own, pruned = self.modules
        target = str(self.node.target)
        if self.node.op == "get_attr":
            return _same_tensor(tensor_at(own, target), tensor_at(pruned, target))
        if self.node.op == "call_module":
            return _same_layer(own.get_submodule(target), pruned.get_submodule(target))
        return True

    def _between(self, got: Any, wanted: Any) -> Iterator[Difference]:
        """Compare arguments; a size that the pruned graph has as a number is what its node gives."""
        if isinstance(wanted, fx.Node):
            if self.reader.is_computed(wanted):  # nobody has compared the node itself
                same = same_size(got, wanted, self.reader)
            else:
                same = SizeReader().read(got) == self.reader.read(wanted)
            if not same:
                yield self._other()
            return
        if isinstance(wanted, slice) and isinstance(got, slice):
            wanted, got = [(s.start, s.stop, s.step) for s in (wanted, got)]
        elif isinstance(wanted, dict) and isinstance(got, dict) and wanted.keys() == got.keys():
            wanted, got = [*wanted.values()], [got[key] for key in wanted]
        got = SizeReader().read(got)
        if isinstance(wanted, (list, tuple)):
            if not isinstance(got, (list, tuple)) or len(got) != len(wanted):
                yield self._other()
                return
            for a, b in zip(got, wanted, strict=True):
                yield from self._between(a, b)
            return
        got = value_of(got)
        if not _same_constant(got, wanted):
            numbers = type(got) is int and type(wanted) is int
            yield self._other(got, wanted) if numbers else self._other()


def _same_constant(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return isinstance(a, Tensor) and isinstance(b, Tensor) and _same_tensor(a, b)
    if isinstance(a, float) and isinstance(b, float):
        return a == b or math.isclose(a, b, rel_tol=1e-12) or (math.isnan(a) and math.isnan(b))
    return a is b or (type(a) is type(b) and bool(a == b))


def _same_tensor(a: Tensor, b: Tensor) -> bool:
    if a is b:
        return True
    if (a.shape, a.dtype, a.device) != (b.shape, b.dtype, b.device) or a.is_meta:
        return False
    return (a.data_ptr() == b.data_ptr() and a.stride() == b.stride()) or torch.equal(a, b)


def _same_layer(a: nn.Module, b: nn.Module) -> bool:
    """Do two layers compute the same: of one class, with equal settings, on equal tensors?"""
    if type(a) is not type(b):
        return False
    one, other = vars(a), vars(b)
    if one.keys() != other.keys():
        return False
    for name, value in one.items():
        if name == "training":
            continue
        if not _same_nest(value, other[name]):
            return False
    return True


def _same_nest(a: Any, b: Any) -> bool:
    if a is b:
        return True
    if isinstance(a, nn.Module):
        return isinstance(b, nn.Module) and _same_layer(a, b)
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and _same_tensor(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(_same_nest(v, b[k]) for k, v in a.items())
    if isinstance(a, (list, tuple)):
        same = type(a) is type(b) and len(a) == len(b)
        return same and all(_same_nest(x, y) for x, y in zip(a, b, strict=True))
    return type(a) is type(b) and bool(a == b)
