"""What each channel costs when the cheapest goes first, and the rest make up for it.

Channels go one after the other, a few at a time: what is missing is put on the rest, in the covariance and in
the weight, before the next are chosen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

__all__ = ["removal_costs"]

RIDGE = 3e-2  # of the mean variance, added to the covariance: few samples claim too much
SHARE = 32  # at least one channel in so many of those left goes at once


def removal_costs(readers: Sequence[tuple[Tensor, Tensor]]) -> np.ndarray:
    """Return the squared error that each channel's removal adds, when the cheapest goes first.

    Args:
        readers: covariances [n, n] of what each reader reads, and its weight [outputs, n], whose outputs
            count alike.

    Returns:
        float64 [n]: never less than what went before cost, so that the lowest are those that go first.
    """
    inverses, weights = [], []
    for covariance, weight in readers:
        inverses.append(_inverse(covariance.double()))
        weights.append(weight.double())
    n = len(inverses[0])
    costs, left, floor = np.zeros(n), torch.arange(n), 0.0
    while len(left):
        pairs = zip(inverses, weights, strict=True)
        now = sum(w.square().sum(0) / h.diagonal() for h, w in pairs)
        assert isinstance(now, Tensor)
        going = now.argsort(stable=True)[: math.ceil(len(left) / SHARE)].cpu()
        gone = torch.zeros(len(left), dtype=torch.bool)
        gone[going] = True
        staying = (~gone).nonzero()[:, 0]
        for j in going.tolist():
            floor = max(floor, float(now[j]))
            costs[left[j]] = floor
        for i, (h, w) in enumerate(zip(inverses, weights, strict=True)):
            # What each of those that stay takes over of each that goes.
            crossed = h[going][:, staying]
            share = torch.linalg.solve(h[going][:, going], crossed)
            inverses[i] = h[staying[:, None], staying].addmm_(crossed.mT, share, alpha=-1)
            weights[i] = w[:, staying].addmm_(w[:, going], share, alpha=-1)
        left = left[staying]
    return costs


def _inverse(covariance: Tensor) -> Tensor:
    """Invert a covariance with a ridge, a larger one where rounding makes it none."""
    mean = covariance.diagonal().mean().clamp_min(torch.finfo(torch.float64).tiny)
    eye, ridge = torch.eye(len(covariance), dtype=torch.float64, device=covariance.device), RIDGE
    while True:
        factor, failed = torch.linalg.cholesky_ex(covariance + ridge * mean * eye)
        if not failed or ridge > 1:
            return torch.cholesky_inverse(factor)
        ridge *= 10
