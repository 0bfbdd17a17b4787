"""What a graph's nodes give, beside tensors' values, on several examples: sizes, shapes, types, devices."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from fxprune.certify.comparison import same_draws
from fxprune.certify.float64 import Float64Interpreter, default_float64
from fxprune.graph.example import Example
from fxprune.graph.tensors import holds_attributes, is_float

__all__ = ["Traits", "other_examples", "repeatable", "traits_of"]

# By node, on each example: a size, a type, a device, or a tensor's outline (shape, type, device).
Traits = Mapping[str, tuple[Any, ...]]


def traits_of(double: fx.GraphModule, examples: Sequence[Example]) -> Traits:
    """Run a float64 graph on each example; tensors are told as they are on the meta device."""
    runs = [_Outlines(double, example).seen for example in examples]
    return {name: tuple(run[name] for run in runs) for name in runs[0] if all(name in run for run in runs)}


class _Outlines(Float64Interpreter):
    def __init__(self, double: fx.GraphModule, example: Example) -> None:
        super().__init__(double)
        self.seen: dict[str, Any] = {}
        with torch.no_grad(), same_draws(double), default_float64():
            self.run_on(example)

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor):
            self.seen[n.name] = (tuple(value.shape), value.dtype, value.device)
        elif type(value) in (int, torch.Size, torch.dtype, torch.device):
            self.seen[n.name] = value
        return value


def other_examples(example: Example) -> Iterator[Example]:
    """List calls like an example, with more samples: of images twice as high, then as large as its own."""
    more = example.with_batch(3) if example.batch == 2 else example
    for factor in (2, 1):
        yield more.map(lambda t, factor=factor: _higher(t, factor))


def _higher(t: Tensor, factor: int) -> Tensor:
    if t.ndim < 4 or not is_float(t):
        return t
    return torch.cat([t, t.flip(-1)], -2) if factor == 2 else t


def repeatable(value: Any) -> Any:
    """Copy what a call may change in its arguments: lists, dicts, a cache; tensors and modules are shared."""

    def own(leaf: Any) -> Any:
        if not holds_attributes(leaf):
            return leaf
        tensors = [t for t in pytree.tree_leaves(vars(leaf)) if isinstance(t, Tensor)]
        try:
            return copy.deepcopy(leaf, {id(t): t for t in tensors})
        except Exception:  # what can't be copied is handed on
            return leaf

    return pytree.tree_map(own, value)
