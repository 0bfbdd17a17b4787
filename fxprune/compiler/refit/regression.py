"""Ridge regression towards given weights, from second moments alone.

With X what a layer reads now and Y what it gave, the weights are W0 + R X^T (X X^T + lambda I)^-1, R what
W0 X lacks of Y, and the bias what their means ask for.  lambda is what does best on samples held out.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["RIDGES", "PairMoments", "Solution", "solved"]

# Relative to the mean variance of what is read; tried from the strongest on, while it gets better.
RIDGES = (30.0, 10.0, 3.0, 1.0, 0.3, 0.1, 3e-2, 1e-2, 1e-3, 1e-4)
LEAST_GAIN = 1e-3  # a smaller share of the held-out error is no reason to change weights


class PairMoments:
    """Sums over places of what a layer reads, X [groups, places, k], and gives, Y [groups, places, o].

    A place counts as much as is said with it; n is the sum of that.
    """

    def __init__(self) -> None:
        self.count = 0.0
        self.x = self.y = self.xx = self.xy = self.yy = torch.zeros(())

    def add(self, x: Tensor, y: Tensor, counts: Tensor) -> None:
        """Add places, that count [places]; products are taken in float32 at least, sums in float64."""
        x, y = (t if t.dtype == torch.float64 else t.float() for t in (x, y))
        counts = counts.to(x)[:, None]
        counted_x, counted_y = x * counts, y * counts
        self.count += float(counts.sum())
        self.x = self.x + counted_x.double().sum(1)
        self.y = self.y + counted_y.double().sum(1)
        self.xx = self.xx + (counted_x.mT @ x).double()
        self.xy = self.xy + (x.mT @ counted_y).double()
        self.yy = self.yy + (counted_y * y).double().sum(1)

    def __add__(self, other: PairMoments) -> PairMoments:
        total = PairMoments()
        for name in ("count", "x", "y", "xx", "xy", "yy"):
            setattr(total, name, getattr(self, name) + getattr(other, name))
        return total

    def error(self, weight: Tensor, bias: Tensor) -> float:
        """Return the mean squared error of Y about weight X + bias, summed over outputs."""
        n = self.count
        linear = weight @ self.x[..., None] - self.y[..., None]
        crossed = (weight.mT * self.xy).sum()
        squared = ((weight @ self.xx) * weight).sum()
        total = self.yy.sum() - 2 * crossed + squared + 2 * (bias[..., None] * linear).sum()
        return float(total / n + bias.square().sum())

    def fitted(
        self, towards: Tensor, ridge: float, *, bias: Tensor, free_bias: bool
    ) -> tuple[Tensor, Tensor]:
        """Solve for the weights [groups, o, k] and the bias [groups, o]; float64."""
        n, mean_x = self.count, self.x / self.count
        mean_y = self.y / n if free_bias else bias  # without a bias of its own: about zero
        about = mean_x if free_bias else torch.zeros_like(mean_x)
        xx = self.xx / n - about[..., :, None] * about[..., None, :]
        xy = self.xy / n - mean_x[..., :, None] * mean_y[..., None, :]
        weight = towards
        if ridge != float("inf"):
            size = xx.diagonal(dim1=-2, dim2=-1).mean(-1).clamp_min(torch.finfo(xx.dtype).tiny)
            regular = xx + torch.diag_embed((ridge * size)[..., None].expand(xx.shape[:-1]))
            lacking = xy - xx @ towards.mT
            weight = towards + torch.cholesky_solve(lacking, torch.linalg.cholesky(regular)).mT
        return weight, mean_y - (weight @ mean_x[..., None])[..., 0] if free_bias else bias


@dataclass(frozen=True)
class Solution:
    """New weights [groups, o, k] and bias [groups, o]; errors on what was held out, before and after."""

    weight: Tensor
    bias: Tensor
    ridge: float
    before: float
    after: float


def solved(
    seen: PairMoments, held: PairMoments, weight: Tensor, bias: Tensor, *, free_bias: bool
) -> Solution | None:
    """Solve anew with the ridge that does best on what was held out; None where none does better.

    Args:
        weight, bias: as they are, float64 [groups, o, k] and [groups, o].
        free_bias: the layer has a bias, which may change.
    """
    before = best = held.error(weight, bias)
    chosen, worse = None, 0
    for ridge in (float("inf"), *RIDGES):
        try:
            error = held.error(*seen.fitted(weight, ridge, bias=bias, free_bias=free_bias))
        except torch.linalg.LinAlgError:
            break
        worse = worse + 1 if not error < best else 0
        if error < best:
            best, chosen = error, ridge
        elif worse == 2 and ridge != float("inf"):
            break
    if chosen is None or not best < before * (1 - LEAST_GAIN):
        return None
    try:
        found = (seen + held).fitted(weight, chosen, bias=bias, free_bias=free_bias)
    except torch.linalg.LinAlgError:
        return None
    if not all(bool(t.isfinite().all()) for t in found):
        return None
    return Solution(*found, chosen, before, best)
