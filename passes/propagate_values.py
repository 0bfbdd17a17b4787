"""Give every node its value, computed on fake tensors: shapes and dtypes without memory or arithmetic."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import (
    DynamicOutputShapeException,
    FakeTensorMode,
    unset_fake_temporarily,
)
from torch.utils import _pytree as pytree

from fxprune.capture.inputs import Example
from fxprune.errors import ExampleInputError, RewriteError

__all__ = ["NodeError", "bound_arguments", "propagate_values", "refuse_broken"]


def propagate_values(module: fx.GraphModule, example: Example, batch: int | None = None) -> None:
    """Set `node.meta["val"]` on each node, for a batch of another size if one is given.

    Contract: the graph is not changed.

    Raises:
        NodeError: the graph rejects the example; names the node and the user's line.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    fakes = {id(t): mode.from_tensor(t, static_shapes=True) for t in _state(module)}
    root = copy.deepcopy(nn.ModuleDict({"m": _shell(module)}), memo=dict(fakes))["m"]
    with mode:
        inputs = example.map(lambda t: torch.empty(t.shape, dtype=t.dtype, device=t.device)).with_batch(batch)
    values = _Values(module, root, mode)
    with mode, torch.no_grad():
        values.run(*bound_arguments(module, inputs))


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


def _state(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def _shell(module: fx.GraphModule) -> nn.Module:
    """The tree of modules without the graph: cheap to copy."""
    shell = nn.Module()
    shell._modules, shell._parameters, shell._buffers = (
        module._modules,
        module._parameters,
        module._buffers,
    )
    return shell


def bound_arguments(module: fx.GraphModule, example: Example) -> list[Any]:
    """The example's arguments in the order of the graph's placeholders."""
    names = [n for n in module.graph.nodes if n.op == "placeholder"]
    values = list(example.args)
    for node in names[len(values) :]:
        if str(node.target) in example.kwargs:
            values.append(example.kwargs[str(node.target)])
        elif node.args:
            values.append(node.args[0])
        else:
            raise ExampleInputError(f"the example gives no value for the model's input {node.target!r}")
    return values


class NodeError(Exception):
    """A node does not run: its name, the user's line, and why."""

    def __init__(self, node: fx.Node, error: Exception) -> None:
        where = f" ({node.meta['where']})" if node.meta.get("where") else ""
        first = (str(error).strip().splitlines() or [""])[0]
        super().__init__(f"{node.name}{where}: {type(error).__name__}: {first}")


class _Values(fx.Interpreter):
    """Runs the graph on a root whose tensors are fake, and keeps what each node returned."""

    def __init__(self, module: fx.GraphModule, root: nn.Module, mode: FakeTensorMode) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.mode = mode
        self.extra_traceback = False
        self.root = root
        self.submodules = dict(root.named_modules())

    def run_node(self, n: fx.Node) -> Any:
        try:
            try:
                value = super().run_node(n)
            except DynamicOutputShapeException:  # its shape is in the values of what it is given
                value = self._constant(n)
        except Exception as error:
            raise NodeError(n, error) from error
        n.meta["val"] = value
        return value

    def _constant(self, n: fx.Node) -> Any:
        """The value of a node that depends on no input, computed for real."""
        with unset_fake_temporarily():
            value = self._real(n)
        return pytree.tree_map_only(Tensor, self.mode.from_tensor, value)

    def _real(self, n: fx.Node) -> Any:
        known = n.meta.get("val")
        if known is not None and not any(isinstance(v, Tensor) for v in pytree.tree_leaves(known)):
            return known  # a size, a device
        if n.op == "get_attr":
            return super().fetch_attr(str(n.target))
        if n.op == "placeholder":
            raise ValueError("a shape depends on the values of an input")
        args, kwargs = fx.map_arg((n.args, n.kwargs), self._real)
        return getattr(super(), n.op)(n.target, args, kwargs)

    def fetch_attr(self, target: str) -> Any:
        value: Any = self.root
        for part in target.split("."):
            value = getattr(value, part)
        return value
