"""Random changes of basis, of each freedom: the test of what an analysis claims."""

from __future__ import annotations

import torch
from torch import Tensor

from fxprune.analysis.analysis import Analysis
from fxprune.analysis.freedom.regions import Freedom
from fxprune.passes.rebasing.change import bases_of, heads_of

__all__ = ["random_bases"]


def random_bases(analysis: Analysis, seed: int = 0) -> dict[str, Tensor]:
    """Draw a matrix for every basis that may change: float64 [n, n], or one per head [heads, n, n]."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, (group, region) in bases_of(analysis).items():
        heads = heads_of(analysis, group, region)
        count = heads.size if heads is not None else 1
        matrices = [_drawn(group.size, region.freedom, region.centred, generator) for _ in range(count)]
        found[name] = torch.stack(matrices) if heads is not None else matrices[0]
    return found


def _drawn(n: int, freedom: Freedom, centred: bool, generator: torch.Generator) -> Tensor:
    if freedom is Freedom.ANY:  # singular values from 0.5 to 2: no digits are lost
        sizes = 0.5 + 1.5 * torch.rand(n, generator=generator, dtype=torch.float64)
        return _rotation(n, generator) * sizes @ _rotation(n, generator)
    if not centred or n == 1:
        return torch.eye(n, dtype=torch.float64) if centred else _rotation(n, generator)
    inner = torch.eye(n, dtype=torch.float64)
    inner[1:, 1:] = _rotation(n - 1, generator)
    ones = torch.zeros(n, dtype=torch.float64)
    ones[0] = 1
    ones -= torch.full((n,), n**-0.5, dtype=torch.float64)
    mirror = torch.eye(n, dtype=torch.float64) - 2 * torch.outer(ones, ones) / ones.dot(ones)
    return mirror @ inner @ mirror  # the mirror swaps the first unit vector and that of ones


def _rotation(n: int, generator: torch.Generator) -> Tensor:
    q, r = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))
    rotation: Tensor = q * r.diagonal().sign()
    return rotation
