"""Devices and dtypes that a capture wrote down as constants follow the model's first input again."""

from __future__ import annotations

import torch
from torch import Tensor, fx

__all__ = ["follow_input"]


def follow_input(module: fx.GraphModule) -> fx.GraphModule:
    """Read constant devices and dtypes off the first input that has them.

    Needs: `meta["val"]`.  Guarantees: the same values on the device and in the dtype of the capture.

    A graph that says `arange(.., device="cpu")` or `x.to(torch.float32)` where the model said
    `device=x.device`, `x.to(weight.dtype)` would break under `.to(device)` and `.to(dtype)`.  A dtype that
    the model's code spells (`meta["literal_dtype"]`) stays.
    """
    inputs = [n for n in module.graph.nodes if n.op == "placeholder"]
    tensors = [n for n in inputs if isinstance(n.meta.get("val"), Tensor)]
    floats = [n for n in tensors if n.meta["val"].is_floating_point()]
    if not tensors:
        return module
    device = _Followed(module.graph, inputs[-1], tensors[0], "device", tensors[0].meta["val"].device)
    dtype = (
        _Followed(module.graph, inputs[-1], floats[0], "dtype", floats[0].meta["val"].dtype)
        if floats
        else None
    )
    for node in list(module.graph.nodes):
        if node.op not in ("call_function", "call_method"):
            continue
        read = None if node.meta.get("literal_dtype") else dtype
        node.args = tuple(_follow(a, device, read) for a in node.args)
        node.kwargs = {k: _follow(v, device, read) for k, v in node.kwargs.items()}
    return module


class _Followed:
    """An attribute of the input, read once, where a constant equals it."""

    def __init__(self, graph: fx.Graph, after: fx.Node, source: fx.Node, name: str, value: object) -> None:
        self.graph, self.after, self.source = graph, after, source
        self.name, self.value = name, value
        self.node: fx.Node | None = None

    def read(self) -> fx.Node:
        if self.node is None:
            with self.graph.inserting_after(self.after):
                self.node = self.graph.call_function(getattr, (self.source, self.name))
                self.node.meta["val"] = self.value
        return self.node


def _follow(value: object, device: _Followed, dtype: _Followed | None) -> object:
    if isinstance(value, torch.device) and value == device.value:
        return device.read()
    if isinstance(value, torch.dtype) and dtype is not None and value == dtype.value:
        return dtype.read()
    return value
