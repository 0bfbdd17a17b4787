"""Which basis each reader of a group reads in, and on which side: found by trying one.

Several regions of a group may change by matrices of their own (queries and keys, values), and an operand lies
on one side of its region: it changes by the matrix, or by the inverse of its transpose.  Weights are changed
by random matrices, all at once, and what every reader then reads says which of them it was changed by.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx, nn

from fxprune.analysis.analysis import Analysis, Group
from fxprune.certify.comparison import same_draws
from fxprune.certify.float64 import default_float64, doubled, put_tensors
from fxprune.choose.importance.reads import Reads
from fxprune.graph.copies import graph_shared, structural_copy
from fxprune.graph.tensors import in_float64, named_tensors
from fxprune.graph.values import bound_arguments
from fxprune.passes.rebasing.change import bases_of, changed_weights
from fxprune.passes.rebasing.random import random_bases

__all__ = ["Reading", "folded_weights", "on_weights", "readings_of"]

CLOSE = 1e-6  # how near a reader's vectors must be to what a matrix makes of them


@dataclass(frozen=True)
class Reading:
    """A reader's basis, by name, and its side: +1 where what it reads changes by the matrix itself."""

    basis: str
    side: int


def folded_weights(analysis: Analysis, names: Sequence[str]) -> dict[str, Tensor]:
    """Return the weights that folding changes: of what stands in the way of some bases, in float64."""
    same = {
        name: torch.eye(group.size, dtype=torch.float64)
        for name, (group, _) in bases_of(analysis).items()
        if name in names
    }
    return changed_weights(analysis, same)


def on_weights(analysis: Analysis, weights: Mapping[str, Tensor]) -> Analysis:
    """Return the analysis on a copy of its graph that holds other weights, in the dtype of its own."""
    tensors = dict(named_tensors(analysis.module))
    by_id = {id(tensors[name]): value.to(tensors[name]) for name, value in weights.items()}
    by_id = {key: nn.Parameter(t, requires_grad=False) for key, t in by_id.items()}

    def copied(held: nn.Module) -> nn.Module:
        return structural_copy(held, lambda t: by_id.get(id(t), t))

    return _on(analysis, graph_shared(analysis.module, copied))  # (steps and axes are by the graph's nodes)


def readings_of(
    analysis: Analysis, groups: Sequence[Group], names: Sequence[str], weights: Mapping[str, Tensor]
) -> dict[tuple[fx.Node, Group], Reading]:
    """Find the basis and the side of every reader of some groups that reads in one; others are left out.

    weights: those that folding for the bases of these names changes.
    """
    random = {name: matrix for name, matrix in random_bases(analysis).items() if name in names}
    before = _read(analysis, groups, weights)
    after = _read(analysis, groups, changed_weights(analysis, random))
    found = {}
    for key, vectors in before.items():
        tried = [
            Reading(name, side)
            for name in key[1].bases
            if name in random
            for side in (1, -1)
            if _is_changed(vectors, after[key], random[name], side)
        ]
        if tried:
            found[key] = tried[0]  # (of a rotation both sides are one)
    return found


def _is_changed(before: Tensor, after: Tensor, matrix: Tensor, side: int) -> bool:
    matrix = matrix.to(before)
    matrix = matrix if side > 0 else torch.linalg.inv(matrix).mT
    off = before @ matrix.mT - after
    return bool(off.norm() <= CLOSE * after.norm())


def _read(
    analysis: Analysis, groups: Sequence[Group], weights: Mapping[str, Tensor]
) -> dict[tuple[fx.Node, Group], Tensor]:
    """Return what every reader reads with other weights, on the example, in float64."""
    module = doubled(analysis.module)
    put_tensors(module, weights)
    running = Reads(_on(analysis, module), groups)
    example = analysis.captured.example.map(in_float64)
    running.size = example.batch or 1
    with torch.no_grad(), default_float64(), same_draws(module):
        running.run(*bound_arguments(module, example))
    return running.read


def _on(analysis: Analysis, module: fx.GraphModule) -> Analysis:
    return replace(analysis, graph=replace(analysis.graph, captured=analysis.captured.on(module)))
