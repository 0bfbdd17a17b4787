"""Draw other inputs of a call: normal noise, and whole numbers that mean something."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from fxprune.analysis.analysis import Analysis
from fxprune.graph.example import Example
from fxprune.graph.tensors import is_float

__all__ = ["drawn", "is_varied", "leaves_of", "table_sizes"]


def leaves_of(example: Example) -> list[Tensor]:
    """Return the tensors of a call, in order."""
    return [t for t in pytree.tree_leaves((example.args, example.kwargs)) if isinstance(t, Tensor)]


def is_varied(example: Example) -> bool:
    """Return whether no tensor of a call holds one value only."""
    return all(t.numel() < 2 or bool((t != t.flatten()[0]).any()) for t in leaves_of(example))


def table_sizes(analysis: Analysis) -> dict[str, int]:
    """Count the rows of the smallest table that each input is looked up in."""
    sizes: dict[str, int] = {}
    for step in analysis.steps.values():
        if step.rule is None or not step.call.op.endswith("embedding"):
            continue
        bound = step.bound
        axes = _axes_of(analysis, bound.get("weight"))
        for name in _inputs_behind(bound.get("input")) if axes else ():
            sizes[name] = min(axes[0].size, sizes.get(name, axes[0].size))
    return sizes


def _axes_of(analysis: Analysis, weight: Any) -> Any:
    if isinstance(weight, fx.Node):
        return next(iter(analysis.axes.get(weight, ())), ())
    return analysis.weights.get(getattr(weight, "name", ""), ())


def _inputs_behind(value: Any) -> set[str]:
    """Return the inputs that an index is computed from, by whole numbers alone."""
    found, queue = set(), [value] if isinstance(value, fx.Node) else []
    while queue:
        node = queue.pop()
        val = node.meta.get("val")
        if isinstance(val, Tensor) and is_float(val):
            continue
        if node.op == "placeholder":
            found.add(str(node.target))
        queue += node.all_input_nodes
    return found


def drawn(
    example: Example,
    names: list[str],
    tables: Mapping[str, int],
    *,
    seed: int,
    scale: float = 1.0,
    only: int | None = None,
) -> Example:
    """Draw another call of the same shapes.

    Floats are normal, times `scale`.  Whole numbers are drawn from those that the example holds; where it
    holds one only, from the rows of the table that they are looked up in, or 0 and 1.

    Args:
        names: of the positional inputs.
        tables: input -> rows of that table.
        only: the place, among `leaves_of(example)`, of the one tensor that is drawn; None: all are.
    """
    generator = torch.Generator().manual_seed(seed)
    count = iter(range(1 << 30))

    def draw(t: Tensor, name: str) -> Tensor:
        if next(count) != only and only is not None:
            return t
        if is_float(t):
            noise = torch.randn(
                t.shape, generator=generator, dtype=torch.complex128 if t.is_complex() else None
            )
            return (noise * scale).to(t)
        return _whole_numbers(t, tables.get(name), generator)

    def all_of(value: Any, name: str) -> Any:
        return pytree.tree_map_only(Tensor, lambda t: draw(t, name), value)

    args = tuple(all_of(a, names[i] if i < len(names) else "") for i, a in enumerate(example.args))
    return Example(args, {name: all_of(value, name) for name, value in example.kwargs.items()})


def _whole_numbers(t: Tensor, rows: int | None, generator: torch.Generator) -> Tensor:
    known = t.unique()
    if len(known) < 2:
        if rows is None and not bool(((known == 0) | (known == 1)).all()):
            return t
        known = torch.arange(rows or 2).to(t)
    at = torch.randint(len(known), t.shape, generator=generator).to(t.device)
    numbers = known[at]
    if rows is None and t.ndim and t.shape[-1] > 1:  # a mask that hides everything has nothing to say
        numbers[..., 0] = known[-1]
    return numbers
