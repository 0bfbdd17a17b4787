"""Change one dimension of a tensor by a matrix, or by a vector, along one factor of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from fxprune.analysis.freedom.positions import Part, labelled_in
from fxprune.analysis.freedom.regions import Place
from fxprune.rules.axes import Atom, Axis, Product, atoms_of, coordinates
from fxprune.rules.registry import Axes

__all__ = ["changed", "scaled", "taken"]


def changed(tensor: Tensor, axes: Axes, place: Place, a: Atom, matrix: Tensor, heads: Atom | None) -> Tensor:
    """Multiply a tensor by a matrix along one of its axes.

    Args:
        axes: of the tensor.
        place: the dimension, the part of it, and the side: the matrix itself or the inverse of its transpose.
        a: the atom that the matrix is of; other factors of the dimension stay what they are.
        matrix: float64 [n, n], or one per head [heads, n, n].
        heads: what counts the heads, where there is one per head.
    """
    if place.side < 0:
        matrix = torch.linalg.inv(matrix).mT
    result = tensor.clone()
    if heads is None:
        _along(result, axes, place, a, place.part, matrix)
    else:
        at = labelled_in(axes, place.dim, a, place.run, heads)
        for h in range(heads.size):
            _along(result, axes, place, a, place.part, matrix[h], (heads, h, at))
    return result


def scaled(tensor: Tensor, axes: Axes, place: Place, a: Atom, vector: Tensor) -> Tensor:
    """Multiply (or divide, on the other side) a tensor along one of its axes.

    vector: an element for each of the atom, or for each position along its run.
    """
    index = _runs_of(axes[place.dim], a)[place.run]
    at = np.flatnonzero((index >= 0) & _within(axes[place.dim], place.part))
    along = vector[torch.from_numpy(index[at])] if vector.numel() == a.size else vector
    where = _where(axes, place.dim, place.part)
    where[place.dim] = torch.from_numpy(at)
    shape = [-1 if d == place.dim else 1 for d in range(tensor.ndim)]
    along = (along if place.side > 0 else 1 / along).reshape(shape)
    result, mesh = tensor.clone(), _mesh(where)
    result[mesh] = tensor[mesh] * along.to(tensor.device)
    return result


def taken(tensor: Tensor, axes: Axes, place: Place, a: Atom) -> tuple[Tensor, Tensor]:
    """Return a vector's elements along a run of an atom, and the vector with ones in their place."""
    at = torch.from_numpy(np.flatnonzero(_runs_of(axes[place.dim], a)[place.run] >= 0))
    flat = tensor.clone().flatten()  # (its other dimensions are of size one)
    elements = flat[at]
    flat[at] = 1
    return elements, flat.reshape(tensor.shape)


def _along(
    tensor: Tensor,
    axes: Axes,
    place: Place,
    a: Atom,
    part: Part,
    matrix: Tensor,
    head: tuple[Atom, int, int | None] | None = None,
) -> None:
    """Multiply a tensor in place, row by row: no two rows share an element."""
    rows = _rows(axes[place.dim], a, place.run)
    where, chosen = _where(axes, place.dim, part), _within(axes[place.dim], part)
    if head is not None and head[2] == place.dim:
        chosen = chosen & _within(axes[place.dim], [head[:2]])
    elif head is not None and head[2] is not None:
        other = _within(axes[head[2]], [*part, head[:2]])
        where[head[2]] = torch.from_numpy(np.flatnonzero(other))
    rows = rows[chosen[rows[:, 0]]]  # [count, n]: positions along the dimension
    for row in torch.from_numpy(rows):
        where[place.dim] = row
        mesh = _mesh(where)
        piece = tensor[mesh].movedim(place.dim, -1)
        tensor[mesh] = (piece @ matrix.T.to(piece)).movedim(-1, place.dim)


def _where(axes: Axes, dim: int, part: Sequence[tuple[Atom, int]]) -> list[Tensor]:
    """Return the positions along every other dimension that belong to a part."""
    return [
        torch.from_numpy(np.flatnonzero(_within(axis, part)) if d != dim else np.arange(axis.size))
        for d, axis in enumerate(axes)
    ]


def _within(axis: Axis, part: Sequence[tuple[Atom, int]]) -> np.ndarray:
    """Find which positions along an axis belong to a part: those with its index of each atom they have."""
    known = coordinates(axis)
    chosen = np.ones(axis.size, dtype=bool)
    for b, i in part:
        if b in known:
            chosen &= known[b] == i
    return chosen


def _mesh(where: Sequence[Tensor]) -> tuple[Tensor, ...]:
    n = len(where)
    return tuple(w.reshape([-1 if d == i else 1 for d in range(n)]) for i, w in enumerate(where))


@lru_cache(maxsize=4096)
def _rows(axis: Axis, a: Atom, run: int) -> np.ndarray:
    """Return the positions along an axis where an atom goes through its elements: [times, a.size]."""
    if isinstance(axis, Atom):
        return np.arange(axis.size)[None]
    counts = [list(atoms_of(part)).count(a) for part in axis.parts]
    at = next(i for i in range(len(counts)) if run < sum(counts[: i + 1]))
    rows = _rows(axis.parts[at], a, run - sum(counts[:at]))
    sizes = [part.size for part in axis.parts]
    if not isinstance(axis, Product):
        return rows + sum(sizes[:at])
    outer, inner = np.arange(math.prod(sizes[:at])), np.arange(math.prod(sizes[at + 1 :]))
    places = (outer[:, None, None, None] * sizes[at] + rows[None, :, None]) * len(inner)
    found: np.ndarray = (places + inner[None, None, :, None]).reshape(-1, a.size)
    return found


def _runs_of(axis: Axis, a: Atom) -> list[np.ndarray]:
    return [index for b, index in _leaves(axis) if b is a]


@lru_cache(maxsize=4096)
def _leaves(axis: Axis) -> list[tuple[Atom, np.ndarray]]:
    """Return each leaf of an axis with the element of it that every position uses; -1 for none."""
    if isinstance(axis, Atom):
        return [(axis, np.arange(axis.size))]
    out: list[tuple[Atom, np.ndarray]] = []
    if isinstance(axis, Product):
        inner, outer = axis.size, 1
        for part in axis.parts:
            inner //= part.size
            out += [(b, np.tile(np.repeat(index, inner), outer)) for b, index in _leaves(part)]
            outer *= part.size
        return out
    start = 0
    for part in axis.parts:
        for b, index in _leaves(part):
            whole = np.full(axis.size, -1)
            whole[start : start + part.size] = index
            out.append((b, whole))
        start += part.size
    return out
