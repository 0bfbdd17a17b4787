"""Slice a model's weights into a new tree of modules."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, fx, nn

from fxprune.analysis.analysis import Analysis
from fxprune.graph.chunks import taken
from fxprune.graph.tensors import get_or_create_submodule
from fxprune.result.selection import Selection

__all__ = ["sliced"]


def sliced(analysis: Analysis, selection: Selection, original: nn.Module, graph: fx.Graph) -> nn.Module:
    """Build the tree of modules that a copy of the analysed graph refers to, with sliced tensors."""
    return _Slicer(analysis, selection, original).root(graph)


class _Slicer:
    """Builds the new tree of modules: copies of the leaves, empty modules above them, sliced tensors."""

    def __init__(self, analysis: Analysis, selection: Selection, original: nn.Module) -> None:
        self.analysis, self.selection = analysis, selection
        self.saved = set(original.state_dict())
        self.sliced: dict[int, Tensor] = {}  # one slice per tensor, so that shared ones stay shared

    def root(self, graph: fx.Graph) -> nn.Module:
        source = self.analysis.module
        root = nn.Module()
        held = ((n.op, str(n.target)) for n in graph.nodes if n.op in ("call_module", "get_attr"))
        for op, path in dict.fromkeys(held):
            if op == "call_module":
                _place(root, path, self._leaf(source.get_submodule(path), path))
            else:
                self._place_tensor(root, path, source)
        return root

    def _leaf(self, module: nn.Module, path: str) -> nn.Module:
        new = copy.copy(module)
        new._parameters = {n: self._slice(t, f"{path}.{n}") for n, t in module._parameters.items()}
        new._buffers = {n: self._slice(t, f"{path}.{n}") for n, t in module._buffers.items()}
        new._modules = {n: m and self._leaf(m, f"{path}.{n}") for n, m in module._modules.items()}
        if isinstance(new, nn.RNNBase):  # it reads its weights from a list of its own
            new._flat_weights = [new._parameters[n] for n in new._flat_weights_names]
            new._init_flat_weights()
        return new

    def _slice(self, tensor: Tensor | None, name: str) -> Any:
        if tensor is None:
            return None
        if id(tensor) not in self.sliced:
            axes = self.analysis.weights.get(name, ())
            new = taken(tensor.detach(), [self.selection.positions(axis) for axis in axes])
            if isinstance(tensor, nn.Parameter):
                new = nn.Parameter(new, requires_grad=tensor.requires_grad)
            self.sliced[id(tensor)] = new
        return self.sliced[id(tensor)]

    def _place_tensor(self, root: nn.Module, name: str, source: nn.Module) -> None:
        path, _, leaf = name.rpartition(".")
        owner, place = source.get_submodule(path), get_or_create_submodule(root, path)
        tensor = getattr(owner, leaf)
        if isinstance(tensor, nn.Parameter):
            place.register_parameter(leaf, self._slice(tensor, name))
        else:
            place.register_buffer(leaf, self._slice(tensor, name), persistent=name in self.saved)


def _place(root: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, leaf = path.rpartition(".")
    get_or_create_submodule(root, parent).add_module(leaf, module)
