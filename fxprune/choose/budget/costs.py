"""What a choice of counts costs, read off the axes: no model is built, nothing runs.

A weight has as many elements as the product of its axes' sizes; a contraction takes as many
multiply-accumulates as the product of the sizes of the axes that it runs over (`Flow.macs`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

from fxprune.analysis.analysis import Analysis, Group
from fxprune.rules.axes import atoms_of, size_of
from fxprune.rules.registry import Axes

__all__ = ["Cost", "Counts", "cost_of", "saving_of"]

# How many elements each group keeps; groups that are not listed are whole.
Counts = Mapping[Group, int]
Cost = Callable[[Counts], float]


def cost_of(analysis: Analysis, measure: str, beside: int = 0) -> Cost:
    """Return the cost in parameters, or in multiply-accumulates of one image (for time as well).

    beside: parameters that no choice changes.
    """
    terms = list(_parameters(analysis) if measure == "params" else _contractions(analysis))
    one_image = {a: a.per_sample for term in terms for axis in term for a in atoms_of(axis) if a.per_sample}

    def cost(counts: Counts) -> float:
        sizes = one_image | {group.atom: count for group, count in counts.items()}
        total = float(sum(math.prod(size_of(axis, sizes) for axis in term) for term in terms))
        return total + (beside if measure == "params" else 0)

    return cost


def saving_of(group: Group, cost: Cost) -> float:
    """Return what removing one element of an otherwise whole model saves."""
    return cost({}) - cost({group: group.size - 1})


def _parameters(analysis: Analysis) -> Iterable[Axes]:
    for name, _ in analysis.module.named_parameters():
        if name in analysis.weights:
            yield analysis.weights[name]


def _contractions(analysis: Analysis) -> Iterable[Axes]:
    """Return the axes that each product of the graph runs over."""
    for step in analysis.steps.values():
        yield from step.flow.macs
