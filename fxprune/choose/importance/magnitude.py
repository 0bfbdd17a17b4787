"""Score channels by how large their weights are: importance without data."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from fxprune.analysis.analysis import Analysis, Group
from fxprune.choose.importance.scores import Scores, shape_of
from fxprune.graph.chunks import in_blocks
from fxprune.graph.tensors import at_least_float32, on_meta
from fxprune.rules.axes import Atom, coordinates
from fxprune.rules.registry import Axes

__all__ = ["magnitude"]


def magnitude(analysis: Analysis, groups: Iterable[Group]) -> Scores:
    """Compute the group L2 norm: the root of the sum of squares of all weights that carry an element.

    A model without values (on the `meta` device) scores its first elements highest.
    """
    totals: Scores = {g: np.zeros(shape_of(g)) for g in groups}
    parameters = dict(analysis.module.named_parameters(remove_duplicate=False))
    if on_meta(analysis.module):
        return {g: np.broadcast_to(-np.arange(g.size, dtype=float), t.shape) for g, t in totals.items()}
    wanted = {g.atom: g for g in totals}
    with torch.no_grad():
        for name in dict.fromkeys(analysis.names.values()):
            if name in parameters:
                _add_weight(totals, wanted, parameters[name], analysis.weights[name])
    return {group: np.sqrt(total) for group, total in totals.items()}


def _add_weight(totals: Scores, wanted: dict[Atom, Group], weight: Tensor, axes: Axes) -> None:
    """Add one weight's squares, along each dimension, to the groups that the dimension carries."""
    dims = {dim: coordinates(axis) for dim, axis in enumerate(axes)}
    dims = {dim: where for dim, where in dims.items() if not wanted.keys().isdisjoint(where)}
    energies = _energies(weight.detach(), list(dims))
    for where, energy in zip(dims.values(), energies, strict=True):
        for a, index in where.items():
            if a in wanted:
                _accumulate(totals[wanted[a]], wanted[a], where, index, energy)


def _accumulate(
    total: np.ndarray, group: Group, where: dict[Atom, np.ndarray], index: np.ndarray, energy: np.ndarray
) -> None:
    at = index >= 0
    if group.inside is None:
        np.add.at(total, index[at], energy[at])
    else:
        np.add.at(total, (where[group.inside.atom][at], index[at]), energy[at])


def _energies(weight: Tensor, dims: list[int]) -> list[np.ndarray]:
    """Return the sum of squares over all other dimensions, for each dim: float64 [n]."""
    sums = [np.zeros(weight.shape[dim]) for dim in dims]
    row = 0
    if weight.is_complex():
        weight = torch.view_as_real(weight)
    for block in in_blocks(weight) if dims else ():
        squares = at_least_float32(block).square()
        for dim, total in zip(dims, sums, strict=True):
            others = [d for d in range(squares.ndim) if d != dim]
            part = (squares.sum(others) if others else squares).double().cpu().numpy()
            if dim == 0:
                total[row : row + len(part)] = part
            else:
                total += part
        row += block.shape[0]
    return sums
