"""How much each element of each group matters."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from fxprune.analysis import Analysis, Group
from fxprune.axes import coordinates

__all__ = ["Scores", "magnitude"]

# For each group float64 [size], or [heads, size] where heads may choose for themselves.
Scores = dict[Group, np.ndarray]


def magnitude(analysis: Analysis, groups: Iterable[Group]) -> Scores:
    """Group L2 norm: the root of the sum of squares of all weights that carry an element.

    A model without values (on the `meta` device) scores its first elements highest.
    """
    squares: Scores = {g: np.zeros(g.size if g.inside is None else (g.inside.size, g.size)) for g in groups}
    wanted = {g.atom: g for g in squares}
    parameters = dict(analysis.module.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for name in dict.fromkeys(analysis.names.values()):
            if name not in parameters or parameters[name].device.type == "meta":
                continue
            axes = analysis.weights[name]
            for dim, axis in enumerate(axes):
                where = coordinates(axis)
                if not any(a in wanted for a in where):
                    continue
                energy = _squares_along(parameters[name], dim)
                for a, index in where.items():
                    if a in wanted:
                        _accumulate(squares[wanted[a]], wanted[a], where, index, energy)
    if any(p.device.type == "meta" for p in parameters.values()):
        return {g: np.broadcast_to(-np.arange(g.size, dtype=float), s.shape) for g, s in squares.items()}
    return {group: np.sqrt(s) for group, s in squares.items()}


def _accumulate(total: np.ndarray, group: Group, where: dict, index: np.ndarray, energy: np.ndarray) -> None:
    at = index >= 0
    if group.inside is None:
        np.add.at(total, index[at], energy[at])
    else:
        np.add.at(total, (where[group.inside.atom][at], index[at]), energy[at])


def _squares_along(weight: Tensor, dim: int) -> np.ndarray:
    """The sum of squares of each slice along one dimension: float64 [n]."""
    others = [d for d in range(weight.ndim) if d != dim]
    dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
    norms = (
        torch.linalg.vector_norm(weight.detach(), dim=others, dtype=dtype)
        if others
        else weight.detach().abs()
    )
    return norms.double().cpu().numpy() ** 2
