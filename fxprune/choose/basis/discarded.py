"""What discarding directions of a residual stream costs, its readers as they are or solved again.

Each reader reads x and passes on its derivative g of log p.  With V the discarded directions, [n, count],

    tr(V^T C V  V^T G V),    C = the second moment of x, G = that of g,

is lost at it where it stays as it is.  One that is solved again predicts what is discarded of x from what is
kept, and its bias holds the mean: what is left of C then is its Schur complement, with a ridge,

    (V^T (C' + r I)^-1 V)^-1 - r I,    C' = the covariance of x.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

__all__ = ["Readers"]

RIDGE = 1.0  # of the mean variance: about what the re-fit of a stream's readers takes for some hundred images

ROUNDING = 1e-5  # of a second moment that is summed in float32, and more


@dataclass(frozen=True)
class Readers:
    """Moments of what reads an axis, a reader each, in the order that they run.

    vectors: second moments of what is read, [readers, .., n, n].
    covectors: second moments of the derivatives of log p by it, [readers, .., n, n].
    means: of what is read, [readers, .., n].
    solved: the readers that are solved again, [readers].
    """

    vectors: Tensor
    covectors: Tensor
    means: Tensor
    solved: Tensor

    def of_head(self, head: int) -> Readers:
        vectors, covectors, means = (t[:, head] for t in (self.vectors, self.covectors, self.means))
        return Readers(vectors, covectors, means, self.solved)

    def without_ones(self) -> Readers:
        """Leave out what lies along the vector of ones."""
        rows = (t - t.mean(-1, keepdim=True) for t in (self.vectors, self.covectors))
        vectors, covectors = (t - t.mean(-2, keepdim=True) for t in rows)
        means = self.means - self.means.mean(-1, keepdim=True)
        return replace(self, vectors=vectors, covectors=covectors, means=means)

    def cost(self, dtype: torch.dtype = torch.float64) -> DiscardedCost:
        """Return what computes the cost of directions that are discarded, in a dtype."""
        return DiscardedCost(self, dtype)


class DiscardedCost:
    """The cost of discarding orthonormal directions V [n, count], over all readers, and its slope by V."""

    def __init__(self, readers: Readers, dtype: torch.dtype) -> None:
        kept, solved = ~readers.solved, readers.solved
        self._vectors, self._covectors = readers.vectors[kept].to(dtype), readers.covectors[kept].to(dtype)
        means = readers.means[solved]
        spreads = readers.vectors[solved] - means[:, :, None] * means[:, None, :]
        ridges = RIDGE * spreads.diagonal(dim1=-2, dim2=-1).mean(-1)
        # What one reads that reads the same everywhere differs by rounding, which may be less than nothing.
        ridges = ridges.maximum(ROUNDING * readers.vectors[solved].diagonal(dim1=-2, dim2=-1).mean(-1))
        ridges = torch.where(ridges > 0, ridges, torch.ones_like(ridges))  # it reads nothing
        eye = torch.eye(spreads.shape[-1], dtype=spreads.dtype)
        inverses = _inverse(spreads + ridges[:, None, None] * eye)
        self._inverses, self._ridges = inverses.to(dtype), ridges.to(dtype)
        self._solved_covectors = readers.covectors[solved].to(dtype)

    def __call__(self, frame: Tensor) -> tuple[float, Tensor]:
        as_they_are, slope = self._as_they_are(frame)
        solved, slope_of_solved = self._solved(frame)
        slope = slope + slope_of_solved
        # Of the slope only what keeps directions orthonormal.
        return as_they_are + solved, slope - frame @ (frame.mT @ slope + slope.mT @ frame) / 2

    def _as_they_are(self, frame: Tensor) -> tuple[float, Tensor]:
        c_frame, g_frame = self._vectors @ frame, self._covectors @ frame
        c_inner, g_inner = frame.mT @ c_frame, frame.mT @ g_frame
        return float((c_inner * g_inner).sum()), 2 * (c_frame @ g_inner + g_frame @ c_inner).sum(0)

    def _solved(self, frame: Tensor) -> tuple[float, Tensor]:
        k_frame, g_frame = self._inverses @ frame, self._solved_covectors @ frame
        g_inner, inverse = frame.mT @ g_frame, _inverse(frame.mT @ k_frame)
        left = inverse - self._ridges[:, None, None] * torch.eye(frame.shape[1]).to(frame)
        slope = 2 * (g_frame @ left - k_frame @ (inverse @ g_inner @ inverse)).sum(0)
        return float((left * g_inner).sum()), slope


def _inverse(positive: Tensor) -> Tensor:
    """Invert positive definite matrices; nan where rounding, or what is no number, left them none."""
    factor, failed = torch.linalg.cholesky_ex(positive)
    inverse = torch.cholesky_inverse(factor)
    return torch.where(failed[..., None, None] == 0, inverse, torch.full_like(inverse, torch.nan))
