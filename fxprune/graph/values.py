"""Give every node its value, computed on fake tensors: shapes and dtypes without memory or arithmetic."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import (
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    unset_fake_temporarily,
)
from torch.utils import _pytree as pytree

from fxprune.errors import ExampleInputError, RewriteError, first_line
from fxprune.graph.example import Example
from fxprune.graph.fake_modules import FakeModules
from fxprune.graph.nests import map_leaves
from fxprune.graph.quick_layouts import quick_layout
from fxprune.graph.quick_shapes import quick_shape
from fxprune.graph.quiet import quiet_torch
from fxprune.graph.refuse_train_mode import refusing_nothing
from fxprune.graph.tensors import tensor_at

__all__ = [
    "PUT_OFF",
    "DependsOnValues",
    "FakeRun",
    "NodeError",
    "bound_arguments",
    "called_with",
    "propagate_values",
    "refuse_broken",
]


PUT_OFF = "put_off"  # in a node's meta: run it only if it is asked for, since it may yet go


def propagate_values(module: fx.GraphModule, example: Example, batch: int | None = None) -> None:
    """Set `node.meta["val"]` on each node, for a batch of another size if one is given.

    Contract: the graph is not changed.

    Raises:
        NodeError: the graph rejects the example; names the node and the user's line.
    """
    with quiet_torch(), refusing_nothing(module):
        run = FakeRun(module, module.graph, example, batch)
        for node in module.graph.nodes:
            node.meta["val"] = run.value(node)


def refuse_broken(pruned: fx.GraphModule, example: Example) -> None:
    """Raise RewriteError, naming the node, if a rewritten graph does not run on fake tensors."""
    try:
        propagate_values(pruned, example)
    except NodeError as error:
        raise RewriteError(
            f"the rewritten graph does not run at {error}; this is a bug in a rule of fxprune: "
            f"please report it, and exclude= the module meanwhile"
        ) from error
    for node in pruned.graph.nodes:
        del node.meta["val"]


def bound_arguments(module: fx.GraphModule, example: Example) -> list[Any]:
    """Return the example's arguments in the order of the graph's placeholders."""
    return list(_bound(module.graph, example).values())


def called_with(module: nn.Module, example: Example) -> Any:
    """Call a model, or a graph of one, on an example."""
    if isinstance(module, fx.GraphModule):
        return module(*bound_arguments(module, example))
    return module(*example.args, **example.kwargs)


def _bound(graph: fx.Graph, example: Example) -> dict[fx.Node, Any]:
    values: dict[fx.Node, Any] = {}
    for i, node in enumerate(n for n in graph.nodes if n.op == "placeholder"):
        if i < len(example.args):
            values[node] = example.args[i]
        elif str(node.target) in example.kwargs:
            values[node] = example.kwargs[str(node.target)]
        elif node.args:  # it has a default
            values[node] = node.args[0]
        else:
            raise ExampleInputError(f"the example gives no value for the model's input {node.target!r}")
    return values


class DependsOnValues(fx.proxy.TraceError):
    """What code asks for depends on the values of a tensor."""


class NodeError(Exception):
    """A node does not run: its name, the user's line, and why."""

    def __init__(self, node: fx.Node, error: Exception) -> None:
        where = f" ({node.meta['where']})" if node.meta.get("where") else ""
        super().__init__(f"{node.name}{where}: {type(error).__name__}: {first_line(error)}")


class FakeRun(fx.Interpreter):
    """The values of a graph's nodes on a root whose tensors are fake; the graph may still grow."""

    def __init__(self, source: nn.Module, graph: fx.Graph, example: Example, batch: int | None) -> None:
        super().__init__(nn.Module(), garbage_collect_values=False, graph=graph)
        self.extra_traceback = False
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        self.source, self.modules = source, FakeModules(source, self.mode)
        self.helpers: Mapping[str, nn.Module] = {}  # modules that tracing made, by name
        self.constants: dict[str, Tensor] = {}  # fakes of tensors that tracing met since, by name
        with self.mode:
            inputs = example.map(lambda t: torch.empty(t.shape, dtype=t.dtype, device=t.device))
            self.inputs = inputs.with_batch(batch)
        self.last: fx.Node | None = None
        self.put_off: set[fx.Node] = set()
        self._computed: dict[fx.Node, Any] = {}  # for real
        given = pytree.tree_leaves((example.args, example.kwargs))
        self._devices = {t.device.type for t in given if isinstance(t, Tensor)} - {"meta"}
        self._autocast: dict[str, bool] = {}  # a run that stops in a part without autocast goes on there
        self._copies: dict[str, Any] = {}  # of tensors that real values are made of: they may be written to

    def value(self, node: fx.Node) -> Any:
        """Return what a node gives, after all that stand before it.

        Raises:
            NodeError: a node rejects what it is given.
        """
        with quiet_torch(), self.mode, torch.no_grad(), self._own_autocast():
            while node not in self.env and node not in self.put_off:
                self.last = self.last.next if self.last else next(iter(self.graph.nodes))
                if PUT_OFF in self.last.meta:
                    self.put_off.add(self.last)
                else:
                    self.env[self.last] = self.run_node(self.last)
            self._run_late(node)
        return self.env[node]

    @contextlib.contextmanager
    def _own_autocast(self) -> Iterator[None]:
        """Leave autocast as the caller has it: the nodes that turn it on again may run in a later call."""
        before = {kind: torch.is_autocast_enabled(kind) for kind in self._devices}
        for kind, enabled in {**before, **self._autocast}.items():
            torch.set_autocast_enabled(kind, enabled)
        try:
            yield
        finally:
            self._autocast = {kind: torch.is_autocast_enabled(kind) for kind in before}
            for kind, enabled in before.items():
                torch.set_autocast_enabled(kind, enabled)

    def _run_late(self, node: fx.Node) -> None:
        """Run a node that was put off, after those that it needs."""
        if node not in self.env:
            for given in node.all_input_nodes:
                self._run_late(given)
            self.env[node] = self.run_node(node)

    def run_node(self, n: fx.Node) -> Any:
        try:
            try:
                return _bound(self.graph, self.inputs)[n] if n.op == "placeholder" else super().run_node(n)
            except DynamicOutputShapeException:  # its shape is in the values of what it is given
                return self._constant(n)
        except Exception as error:
            raise NodeError(n, error) from error

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        quick = self._quick(target, args, kwargs)
        return super().call_function(target, args, kwargs) if quick is None else quick

    def call_method(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        quick = self._quick(target, args, kwargs)
        return super().call_method(target, args, kwargs) if quick is None else quick

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        layer = self.modules.original(target)
        made = layer is None  # by tracing, since then
        if layer is None:
            layer = self.helpers.get(target) or self.source.get_submodule(target)
        quick = self._quick(layer, args, kwargs)
        return (layer if made else self.modules.fake(layer))(*args, **kwargs) if quick is None else quick

    def _quick(self, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return what a layer, method or function gives, where that is known without a run of it."""
        shape = quick_shape(op, args, kwargs)
        if shape is None:
            outlines = quick_layout(op, args, kwargs)
        else:
            with unset_fake_temporarily():
                outlines = torch.empty(shape, dtype=args[0].dtype, device="meta")
        return map_leaves(outlines, Tensor, lambda outline: FakeTensor(self.mode, outline, args[0].device))

    def _constant(self, n: fx.Node) -> Any:
        """Return the value of a node that depends on no input, computed for real."""
        with unset_fake_temporarily():
            value = self._real(n)
        return pytree.tree_map_only(Tensor, self.mode.from_tensor, value)

    def _real(self, n: fx.Node) -> Any:
        known = self.env.get(n)
        if known is not None and not any(isinstance(v, Tensor) for v in pytree.tree_leaves(known)):
            return known  # a size, a device
        if n not in self._computed:
            self._computed[n] = self._really_computed(n)
        return self._computed[n]

    def _really_computed(self, n: fx.Node) -> Any:
        if n.op == "get_attr":
            target = str(n.target)
            if target not in self._copies:
                held = tensor_at(self.source, target)
                self._copies[target] = held.detach().clone() if isinstance(held, Tensor) else held
            return self._copies[target]
        if n.op == "placeholder":
            raise DependsOnValues(
                "a shape depends on the values of an input (where a mask picks, x[mask] += y: write "
                "torch.where(mask[..., None], x + y, x), which keeps shapes)"
            )
        args, kwargs = fx.map_arg((n.args, n.kwargs), self._real)
        return getattr(super(), n.op)(n.target, args, kwargs)

    def fetch_attr(self, target: str) -> Any:
        if target in self.helpers:
            return self.helpers[target]
        path, _, name = target.rpartition(".")
        try:
            return self.modules.attribute(path, name)
        except AttributeError:  # a constant, or a function, that tracing met since
            met = tensor_at(self.source, target)
            if isinstance(met, Tensor) and target not in self.constants:
                self.constants[target] = self.mode.from_tensor(met)
            return self.constants.get(target, met)
