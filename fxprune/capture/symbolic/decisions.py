"""Branches on sizes: symbolic tracing follows the one that the example takes, and the graph checks it.

`if H % window: x = F.pad(..)` asks for the truth of a node.  Sizes are known for the example, so the answer
is; a `guard_branch` node refuses every later input of which it is not true.  What depends on values has no
answer, nor what another batch size would answer otherwise (`y.shape == x.shape` of one batch, but not
`len(x) > 8`).
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import DataDependentOutputException

from fxprune.capture.devices import OF_DEVICES
from fxprune.capture.questions import OF_PRECISION
from fxprune.capture.symbolic.counted_parts import is_given
from fxprune.graph.example import PRIME_BATCH, Example
from fxprune.graph.op_names import op_name
from fxprune.graph.own_nodes import guard_branch, guard_dtype
from fxprune.graph.values import DependsOnValues, FakeRun, NodeError
from fxprune.graph.writes import VIEWS, is_view_of_input

__all__ = ["Decisions"]

_OF_TENSORS = {
    *OF_DEVICES,
    *("device", "get_device", "is_meta", "is_floating_point", "is_complex", "is_signed", "dtype"),
    *("requires_grad", "is_leaf", "grad_fn", "grad", "layout"),
}
_OF_THE_SAME_KIND = {
    *("to", "contiguous", "clone", "cat", "stack", "pad", "flip", "roll", "repeat", "getitem", "detach"),
}
OTHER_BATCHES = (1, PRIME_BATCH + 1)  # odd and even, one and many


class Decisions:
    """What the nodes of a graph that is being traced give for the example."""

    def __init__(
        self,
        root: nn.Module,
        graph: fx.Graph,
        example: Example,
        helpers: Mapping[str, nn.Module],
        untraced: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self.kinds_asked: dict[fx.Node, str] = {}  # input -> the line that looks at its dtype
        self.layouts_asked: dict[fx.Node, str] = {}  # input -> the line that looks at what lies as it does
        self._run = FakeRun(root, graph, example, PRIME_BATCH)
        self._untraced = untraced  # modules run meanwhile as they do outside of tracing
        self._helpers = helpers  # modules that the root lacks while it is traced
        self._other_runs = lambda: [FakeRun(root, graph, example, n) for n in OTHER_BATCHES]

    def value(self, proxy: fx.Proxy) -> Any:
        """Return the number, truth or tuple behind a proxy; a node of the graph checks that it stays so.

        Raises:
            TraceError: it depends on the batch size or on a tensor's values.
        """
        value = self.structure(proxy)
        if isinstance(value, (Tensor, torch.SymBool)):
            raise DependsOnValues("it depends on the values of a tensor")
        sizes = [v for v in self._scalars_behind(proxy.node) if type(v) in (int, float)]
        of_batch = any(size and size % PRIME_BATCH == 0 for size in sizes)
        if of_batch and any(self._behind(proxy.node, run) != value for run in self._others):
            raise fx.proxy.TraceError("it depends on the batch size")
        of_dtypes = self._is_of_dtypes(proxy.node)
        if not sizes:
            self._note_kinds(proxy.node)
        if sizes or of_dtypes or self._is_of_layout(proxy.node) or not self._is_of_tensors(proxy.node):
            check = guard_dtype if of_dtypes else guard_branch
            where = proxy.node.meta.get("where") or proxy.node.name
            proxy.tracer.create_proxy("call_function", check, (proxy, value), {"where": where})
        return value

    def structure(self, proxy: fx.Proxy) -> Any:
        """Return what is behind a proxy; its size, if it is a tuple, is the same for every input."""
        return self.structure_of(proxy.node)

    def structure_of(self, node: fx.Node) -> Any:
        return self._behind(node, self._run)

    def _behind(self, node: fx.Node, run: FakeRun) -> Any:
        if node in run.env:
            return run.env[node]
        try:
            run.helpers = self._helpers
            with self._untraced():
                return run.value(node)
        except NodeError as error:
            if isinstance(error.__cause__, DataDependentOutputException):
                raise DependsOnValues("it depends on the values of a tensor") from error
            raise

    @functools.cached_property
    def _others(self) -> list[FakeRun]:
        return self._other_runs()

    def _note_kinds(self, node: fx.Node) -> None:
        """Note the inputs whose dtype a truth is about, themselves or laid out anew."""
        seen, front = set[fx.Node](), [node]
        while front:
            at = front.pop()
            if at in seen:
                continue
            seen.add(at)
            value = self._run.env.get(at)
            if isinstance(value, Tensor) and is_given(at, self._run.env.get):
                self.kinds_asked.setdefault(at, node.meta.get("where") or node.name)
            elif not isinstance(value, Tensor) or op_name(at.target) in VIEWS | _OF_THE_SAME_KIND:
                given = (*at.args, *at.kwargs.values())
                held = [self._run.env.get(v) if isinstance(v, fx.Node) else v for v in given]
                cast = isinstance(value, Tensor) and any(isinstance(v, torch.dtype) for v in held)
                front += [] if cast else at.all_input_nodes

    def _is_of_dtypes(self, node: fx.Node) -> bool:
        """Is a truth about dtypes, or about autocast?"""
        seen, front = {node}, [node]
        while front:
            at = front.pop()
            if isinstance(self._run.env[at], torch.dtype) or op_name(at.target) in OF_PRECISION.calls:
                return True
            if not isinstance(self._run.env[at], Tensor):
                new = [n for n in at.all_input_nodes if n not in seen]
                seen.update(new)
                front += new
        return False

    def _is_of_tensors(self, node: fx.Node) -> bool:
        """Is a truth about devices, kinds of numbers or gradients, which are guarded by themselves?"""
        seen, front = {node}, [node]
        while front:
            at = front.pop()
            if isinstance(self._run.env.get(at), torch.device) or self._asks_tensor(at):
                return True
            new = [n for n in at.all_input_nodes if n not in seen]
            seen.update(new)
            front += new if not isinstance(self._run.env.get(at), Tensor) else []
        return False

    def _asks_tensor(self, node: fx.Node) -> bool:
        if not node.args or not isinstance(node.args[0], fx.Node):
            return False
        asked = node.args[1] if node.target is getattr else op_name(node.target)
        return asked in _OF_TENSORS and isinstance(self._run.env.get(node.args[0]), Tensor)

    def _is_of_layout(self, node: fx.Node) -> bool:
        """Does a truth tell how an input, or a view of one, lies in memory?

        Other tensors lie as they are made, of inputs which are noted.
        """
        front = [node]
        while front:
            at = front.pop()
            if op_name(at.target) == "is_contiguous":
                if isinstance(at.args[0], fx.Node) and is_view_of_input(at.args[0]):
                    return True
                self._note_layouts(at)
            elif not isinstance(self._run.env[at], Tensor):
                front += at.all_input_nodes
        return False

    def _note_layouts(self, node: fx.Node) -> None:
        seen, front = {node}, [node]
        while front:
            at = front.pop()
            if at.op == "placeholder":
                self.layouts_asked.setdefault(at, node.meta.get("where") or node.name)
            new = [n for n in at.all_input_nodes if n not in seen]
            seen.update(new)
            front += new

    def _scalars_behind(self, node: fx.Node) -> Iterator[Any]:
        """Yield the numbers that a number is computed from, back to the tensors whose sizes they are."""
        seen, front = {node}, [node]
        while front:
            at = front.pop()
            value = self._run.env[at]
            if isinstance(value, Tensor):
                continue
            yield from value if isinstance(value, (tuple, list)) else (value,)
            if at.target is operator.getitem:  # one size of a shape: the others do not matter
                continue
            new = [n for n in at.all_input_nodes if n not in seen]
            seen.update(new)
            front += new
