"""Tell which of a graph's nodes gives a tensor that a model's code has."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from fxprune.certify.comparison import same_draws
from fxprune.certify.float64 import Float64Interpreter, default_float64, doubled
from fxprune.compiler.native.fingerprint import Fingerprint
from fxprune.graph.example import Example

__all__ = ["GraphValues"]


class GraphValues(Float64Interpreter):
    """The tensors that a graph computes on an example, as fingerprints."""

    def __init__(self, captured: fx.GraphModule, example: Example) -> None:
        super().__init__(doubled(captured))
        self.tensors: set[fx.Node] = set()
        self.of_shape: dict[tuple[int, ...], list[tuple[fx.Node, Fingerprint]]] = defaultdict(list)
        with torch.no_grad(), same_draws(captured), default_float64():
            self.run_on(example)

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.op != "output" and any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(value)):
            self.tensors.add(n)
        if n.op != "output" and isinstance(value, Tensor):
            self.of_shape[tuple(value.shape)].append((n, Fingerprint.of(value)))
        return value

    def alike(self, seen: Fingerprint) -> list[fx.Node]:
        """List the nodes that give a tensor with this fingerprint."""
        return [n for n, known in self.of_shape[seen.shape] if known.matches(seen)]
