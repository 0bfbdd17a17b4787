"""Ridge regression towards given weights, from second moments alone.

With X what a layer reads now and Y what it gave, the weights are W0 + R X^T (X X^T + lambda I)^-1, R what
W0 X lacks of Y, and the bias what their means ask for.  lambda is what does best on samples held out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fxprune.choose.importance.gram import gram
from fxprune.graph.tensors import at_least_float32

__all__ = ["RIDGES", "PairMoments", "Solution", "solved"]

# Relative to the mean variance of what is read, strongest first; one after the other, while it gets better.
RIDGES = (30.0, 10.0, 3.0, 1.0, 0.3, 0.1, 3e-2, 1e-2, 1e-3, 1e-4)
MIDDLE = 0.3  # where the search begins, if no layer of the same shape was solved before
LEAST_GAIN = 1e-3  # a smaller share of the held-out error is no reason to change weights


class PairMoments:
    """Sums over places of what a layer reads, X [groups, places, k], and gives, Y [groups, places, o].

    A place counts as much as is said with it; `count` is the sum of that.

    x, y: [groups, k], [groups, o].
    xx, xy, yy: of products, [groups, k, k], [groups, k, o]; of squares, [groups, o].
    """

    def __init__(self) -> None:
        self.count = 0.0
        self.x = self.y = self.xx = self.xy = self.yy = torch.zeros(())

    def add(self, x: Tensor, y: Tensor, counts: Tensor) -> None:
        """Add places, that count [places]; products are taken in float32 at least, sums in float64."""
        x, y = at_least_float32(x), at_least_float32(y)
        counts = counts.to(x)[:, None]
        root = counts.sqrt()
        rooted_x, rooted_y = x * root, y * root
        self.count += float(counts.sum())
        for name, sums in (
            ("x", (x * counts).double().sum(1)),
            ("y", (y * counts).double().sum(1)),
            ("xx", gram(rooted_x)),
            ("xy", rooted_x.mT @ rooted_y),
            ("yy", rooted_y.square().double().sum(1)),
        ):
            total = getattr(self, name)
            setattr(self, name, total.add_(sums) if total.ndim else sums.double())

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


class _Ridge:
    """The solutions of one layer for every ridge: moments about the means, and what W0 lacks, once."""

    def __init__(self, moments: PairMoments, towards: Tensor, bias: Tensor, *, free_bias: bool) -> None:
        n = moments.count
        self._mean_x, self._mean_y = moments.x / n, moments.y / n
        self._towards, self._bias, self._free_bias = towards, bias, free_bias
        # Without a bias that may change, all is about zero and what the bias gives.
        about_x = self._mean_x if free_bias else torch.zeros_like(self._mean_x)
        about_y = self._mean_y if free_bias else bias
        self._xx = moments.xx / n - about_x[..., :, None] * about_x[..., None, :]
        xy = moments.xy / n - self._mean_x[..., :, None] * about_y[..., None, :]
        self._lacking = xy - self._xx @ towards.mT
        size = self._xx.diagonal(dim1=-2, dim2=-1).mean(-1)
        self._size = size.clamp_min(torch.finfo(self._xx.dtype).tiny)

    def solution(self, ridge: float) -> tuple[Tensor, Tensor]:
        """Return the weights [groups, o, k] and the bias [groups, o]; float64."""
        weight = self._towards
        if ridge != float("inf"):
            added = (ridge * self._size)[..., None].expand(self._xx.shape[:-1])
            factor = torch.linalg.cholesky(self._xx + torch.diag_embed(added))
            weight = weight + torch.cholesky_solve(self._lacking, factor).mT
        if not self._free_bias:
            return weight, self._bias
        return weight, self._mean_y - (weight @ self._mean_x[..., None])[..., 0]


@dataclass(frozen=True)
class Solution:
    """New weights [groups, o, k] and bias [groups, o]; errors on what was held out, before and after.

    ridge: inf where the weights stay, and the bias alone is new.
    """

    weight: Tensor
    bias: Tensor
    ridge: float
    before: float
    after: float


def solved(
    seen: PairMoments,
    held: PairMoments,
    weight: Tensor,
    bias: Tensor,
    *,
    free_bias: bool,
    start: float = MIDDLE,
) -> Solution | None:
    """Solve anew with the ridge that does best on what was held out; None where none does better.

    Args:
        weight, bias: as they are, float64 [groups, o, k] and [groups, o].
        free_bias: the layer has a bias, which may change.
        start: the ridge to try first, one of RIDGES.
    """
    before = held.error(weight, bias)
    ridges = _Ridge(seen, weight, bias, free_bias=free_bias)
    errors: dict[float, float] = {}

    def error(ridge: float) -> float:
        if ridge not in errors:
            try:
                errors[ridge] = held.error(*ridges.solution(ridge))
            except torch.linalg.LinAlgError:
                errors[ridge] = float("inf")
        return errors[ridge]

    chosen = min((float("inf"), _descended(RIDGES, RIDGES.index(start), error)), key=error)
    if not error(chosen) < before * (1 - LEAST_GAIN):
        return None
    try:
        found = _Ridge(seen + held, weight, bias, free_bias=free_bias).solution(chosen)
    except torch.linalg.LinAlgError:
        return None
    if not all(bool(t.isfinite().all()) for t in found):
        return None
    return Solution(*found, chosen, before, error(chosen))


def _descended(values: Sequence[float], at: int, cost: Callable[[float], float]) -> float:
    """Walk from a place to where the cost rises again on either side; to the first where all are alike."""
    while True:
        nearby = [i for i in (at - 1, at, at + 1) if 0 <= i < len(values)]
        best = min(nearby, key=lambda i: (cost(values[i]), i))
        if best == at:
            return values[at]
        at = best
