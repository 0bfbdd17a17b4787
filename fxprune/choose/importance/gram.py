"""Second moments of places: a symmetric matrix, of which little more than half is computed."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["gram"]

SMALLEST = 512  # columns: so many or fewer are not worth cutting


def gram(x: Tensor) -> Tensor:
    """Compute x^T x [..., n, n] of places x [..., places, n]; blocks below the diagonal mirror the others."""
    n = x.shape[-1]
    if n <= SMALLEST:
        return x.mT @ x
    a, b = x[..., : n // 2], x[..., n // 2 :]
    above = a.mT @ b
    return torch.cat([torch.cat([gram(a), above], -1), torch.cat([above.mT, gram(b)], -1)], -2)
