"""Devices and dtypes that a capture wrote down as constants follow the model's first input again."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from fxprune.graph.own_nodes import dtype_limit, is_guard

__all__ = ["follow_input"]


def follow_input(module: fx.GraphModule) -> fx.GraphModule:
    """Read constant devices and dtypes off the first input that has them.

    Needs: `meta["val"]`.  Guarantees: the same values on the device and in the dtype of the capture.

    A graph that says `arange(.., device="cpu")` or `x.to(torch.float32)` where the model said
    `device=x.device`, `x.to(weight.dtype)` would break under `.to(device)` and `.to(dtype)`.  A dtype that
    the model's code spells (`meta["literal_dtype"]`) stays; a limit of its numbers (`meta["limits"]`, as
    `torch.finfo` says it) follows it, or an operand's (`meta["limits_of"]`).  Where no input is of real
    numbers, dtypes follow the first weight.
    """
    inputs = [n for n in module.graph.nodes if n.op == "placeholder"]
    tensors = [n for n in inputs if isinstance(n.meta.get("val"), Tensor)]
    floats = [n for n in tensors if n.meta["val"].is_floating_point()]
    if not tensors:
        return module
    start = inputs[-1]
    while is_guard(start.next):  # these say in words what an input has to be
        start = start.next
    device = _Followed(module, start, tensors[0], "device")
    source: fx.Node | str | None = floats[0] if floats else _first_weight(module)
    dtype = _Followed(module, start, source, "dtype") if source is not None else None
    for node in list(module.graph.nodes):
        if node.op not in ("call_function", "call_method") or is_guard(node):
            continue
        if dtype is not None and "limits" in node.meta:
            limits = _Limits(module.graph, node, dtype)
            node.args = fx.node.map_aggregate(node.args, limits.follow)
            node.kwargs = fx.node.map_aggregate(node.kwargs, limits.follow)
        read = None if node.meta.get("literal_dtype") else dtype
        node.args = tuple(_follow(a, device, read) for a in node.args)
        node.kwargs = {k: _follow(v, device, read) for k, v in node.kwargs.items()}
    return module


def _first_weight(module: fx.GraphModule) -> str | None:
    return next((name for name, p in module.named_parameters() if p.is_floating_point()), None)


class _Followed:
    """An attribute of the input, or of a weight by its name, read once, where a constant equals it."""

    def __init__(self, module: fx.GraphModule, after: fx.Node, source: fx.Node | str, name: str) -> None:
        self.graph, self.after, self.source = module.graph, after, source
        held = module.get_parameter(source) if isinstance(source, str) else source.meta["val"]
        self.held, self.name, self.value = held, name, getattr(held, name)
        self.node: fx.Node | None = None

    def read(self) -> fx.Node:
        if self.node is None:
            source, after = self.source, self.after
            if isinstance(source, str):
                with self.graph.inserting_after(after):
                    source = after = self.graph.get_attr(source)
                    source.meta["val"] = self.held
            with self.graph.inserting_after(after):
                self.node = self.graph.call_function(getattr, (source, self.name))
                self.node.meta["val"] = self.value
        return self.node


class _Limits:
    """Spells the limit of a dtype that a node holds as a number."""

    def __init__(self, graph: fx.Graph, node: fx.Node, dtype: _Followed) -> None:
        self.graph, self.node, self.dtype = graph, node, dtype

    def follow(self, value: Any) -> Any:
        if type(value) is not float or value not in self.node.meta["limits"]:
            return value
        operand = self.node.meta.get("limits_of")
        with self.graph.inserting_before(self.node):
            if operand is None:
                dtype = self.dtype.read()
            else:
                dtype = self.graph.call_function(getattr, (operand, "dtype"))
                dtype.meta["val"] = self.dtype.value
            limit = self.graph.call_function(dtype_limit, (dtype, self.node.meta["limits"][value]))
        limit.meta.update(
            {key: v for key, v in self.node.meta.items() if key in ("where", "module")}, val=value
        )
        return limit


def _follow(value: object, device: _Followed, dtype: _Followed | None) -> object:
    if isinstance(value, torch.device) and value == device.value:
        return device.read()
    if isinstance(value, torch.dtype) and dtype is not None and value == dtype.value:
        return dtype.read()
    return value
