"""The rotation of a residual stream after which its first coordinates are the ones to keep.

Norms read a stream, so only rotations leave it what it is; a norm that subtracts a mean allows those that
keep the vector of ones where it is.  The width that stays is known here, and the rotation is made for it:
an index-select of the first `keep` coordinates then is the projection on the kept directions, and a
LayerNorm over them still is one (nothing is added to the skips, as SliceGPT has to,
https://arxiv.org/abs/2401.15024).
"""

from __future__ import annotations

import torch
from torch import Tensor

from fxprune.choose.basis.discarded import DiscardedCost, Readers
from fxprune.choose.basis.principal import square_root

__all__ = ["descended", "kept_directions", "rotation"]

STEPS = 60  # of a descent, at most
CLOSE_ENOUGH = 1e-3  # a descent ends where ten steps gain less than this share


def kept_directions(readers: Readers, count: int, *, centred: bool) -> Tensor:
    """Find the `count` orthonormal directions whose complement costs least to discard.

    From the principal directions of all readers together, by descent on orthonormal frames.

    Args:
        readers: of the stream, each [n, n].
        count: how many directions are kept, at most n (n - 1 where centred).
        centred: nothing lies along the vector of ones (a mean is subtracted), and no direction shall.

    Returns:
        float64 [n, count].
    """
    readers = readers.without_ones() if centred else readers
    root, _ = square_root(readers.vectors.mean(0))
    _, directions = torch.linalg.eigh(root @ readers.covectors.sum(0) @ root)
    start = directions.flip(-1)[:, : count + 1] if centred else directions.flip(-1)[:, :count]
    gone = _others(_frame(start, centred)[:, :count], centred)
    return _others(_improved(gone, readers, centred=centred), centred)


def _improved(frame: Tensor, readers: Readers, *, centred: bool) -> Tensor:
    """Improve a frame in float32, and in float64 where that finds no better frame in the end."""
    single = descended(frame.float(), readers.cost(torch.float32), centred=centred)
    found, cost = _frame(single.double(), centred), readers.cost()
    if cost(found)[0] < cost(frame)[0]:
        return found
    return descended(frame, cost, centred=centred)


def descended(frame: Tensor, cost_of: DiscardedCost, *, centred: bool) -> Tensor:
    """Improve a frame of what is discarded: conjugate gradients with backtracking, retracted by QR.

    Directions turn as of Polak and Ribiere, steps are taken as of Armijo: it never gets worse.
    """
    cost, slope = cost_of(frame)
    length = float(torch.linalg.matrix_norm(slope, 2)) if frame.numel() else 0.0
    step, way, costs = 0.1 / length if length else 0.0, -slope, [cost]
    for _ in range(STEPS if length else 0):
        descent = float((way * slope).sum())
        if descent >= 0:
            way, descent = -slope, -float(slope.square().sum())
        while step > 1e-16:
            nearby = _frame(frame + step * way, centred)
            found, next_slope = cost_of(nearby)
            if found <= cost + 1e-4 * step * descent:
                break
            step /= 2
        else:
            break
        # The next step is as long as this one should have been: to where the slope along it is zero.
        risen = float((way * next_slope).sum()) - descent
        step *= min(2.0, max(0.5, -descent / risen)) if risen > 0 else 2.0
        turn = float((next_slope * (next_slope - slope)).sum() / slope.square().sum())
        frame, cost, slope, way = nearby, found, next_slope, -next_slope + max(0.0, turn) * way
        costs.append(cost)
        if len(costs) > 10 and costs[-11] - cost <= CLOSE_ENOUGH * cost:
            break
    return frame


def rotation(directions: Tensor, keep: int, *, centred: bool) -> Tensor:
    """Turn kept directions into the first `keep` coordinates, all others into the rest.

    Where a mean is subtracted, ones stay ones: the kept directions become the vectors of the first `keep`
    coordinates whose sum is zero, one discarded direction is what differs between the means of both parts,
    and a norm over the first part subtracts that.

    Args:
        directions: orthonormal, [n, keep]; [n, keep - 1] and orthogonal to ones where centred.

    Returns:
        float64 [n, n], orthogonal: new coordinates are `rotation @ x`.
    """
    n = len(directions)
    if not centred:
        return _completed(directions).mT.contiguous()
    old = _completed(torch.cat([_ones(n), directions], 1))  # ones, kept, discarded
    rest = n - keep
    between = torch.cat([torch.full((keep, 1), float(rest)), torch.full((rest, 1), -float(keep))])
    new = torch.cat(
        [
            _ones(n),
            _padded(_zero_sums(keep), 0, rest),
            between.double() / between.double().norm().clamp_min(1.0) if rest else between[:, :0].double(),
            _padded(_zero_sums(rest), keep, 0),
        ],
        1,
    )
    return new @ old.mT


def _frame(directions: Tensor, centred: bool) -> Tensor:
    """Orthonormalise directions, without what lies along the vector of ones."""
    if centred:
        directions = directions - directions.mean(0, keepdim=True)
    frame: Tensor = torch.linalg.qr(directions)[0]
    return frame


def _others(frame: Tensor, centred: bool) -> Tensor:
    """Return orthonormal directions that complete a frame, but for the vector of ones where centred."""
    taken = torch.cat([_ones(len(frame)), frame], 1) if centred else frame
    return _completed(taken)[:, taken.shape[1] :]


def _ones(n: int) -> Tensor:
    return torch.full((n, 1), n**-0.5, dtype=torch.float64)


def _zero_sums(n: int) -> Tensor:
    """Return orthonormal columns that span the vectors whose sum is zero: [n, n - 1]."""
    return _completed(_ones(n))[:, 1:] if n else torch.zeros(0, 0, dtype=torch.float64)


def _completed(columns: Tensor) -> Tensor:
    """Complete orthonormal columns to a basis, those first."""
    n, count = columns.shape
    full = torch.linalg.qr(columns, mode="complete")[0]
    return torch.cat([columns, full[:, count:]], 1) if n else columns


def _padded(columns: Tensor, before: int, after: int) -> Tensor:
    return torch.nn.functional.pad(columns, (0, 0, before, after))
