"""The basis of a free axis in which trailing coordinates cost least: one decomposition for every kind.

Along a free axis vectors x meet covectors g: what reads x passes on its derivative g of log p.  Discarding
a direction changes log p by g . (what is discarded of x), so a projector P that is discarded costs about

    tr(P C P^T G) / 2,    C = the second moment of x, G = that of g, summed over all that reads x.

With C^(1/2) G C^(1/2) = V S V^T the coordinates V^T C^(-1/2) x are uncorrelated, so are their covectors, and
coordinate i costs S_i / 2.  The SVD of a value and output projection (CLOVER,
https://arxiv.org/abs/2411.17426) and that of query and key moments are this with their own C and G.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Coordinates", "principal", "square_root"]

# A moment's eigenvalues are taken for at least this share of their mean: what no sample shows is not lost.
RIDGE = 1e-6
# Coordinates that cost less than this share of the dearest are scaled alike: the change stays invertible.
SMALLEST = 1e-8


@dataclass(frozen=True)
class Coordinates:
    """A change of basis and what each new coordinate costs.

    matrix: new coordinates are `matrix @ x`; float64 [..., n, n], invertible.
    costs: estimated KL of discarding each, in descending order; float64 [..., n].
    """

    matrix: Tensor
    costs: Tensor


def principal(vectors: Tensor, covectors: Tensor) -> Coordinates:
    """Diagonalise both moments of an axis at once, the dearest coordinate first.

    Args:
        vectors: second moment of what lies along the axis, [..., n, n]; leading dims: a head each.
        covectors: second moment of the derivatives of log p by it, summed over all that reads it.
    """
    root, inverse = square_root(vectors.double())
    squares, directions = torch.linalg.eigh(root @ covectors.double() @ root)
    squares, directions = squares.flip(-1).clamp_min(0), directions.flip(-1)
    # Vectors and covectors are made equally long: weights of both sides keep their size in low precision.
    largest = squares.amax(-1, keepdim=True)
    largest = torch.where(
        largest > torch.finfo(squares.dtype).tiny, largest, 1.0
    )  # (else nothing depends on it)
    balance = torch.maximum(squares, SMALLEST * largest) ** 0.25
    return Coordinates(balance[..., None] * (directions.mT @ inverse), squares / 2)


def square_root(moment: Tensor) -> tuple[Tensor, Tensor]:
    """Return the symmetric square root of a second moment and its inverse, no eigenvalue too small."""
    squares, directions = torch.linalg.eigh(moment)
    mean = squares.clamp_min(0).mean(-1, keepdim=True)
    mean = torch.where(mean > 0, mean, torch.ones_like(mean))  # nothing lies along it: any basis will do
    lengths = torch.maximum(squares, RIDGE * mean).sqrt()
    root = (directions * lengths[..., None, :]) @ directions.mT
    return root, (directions / lengths[..., None, :]) @ directions.mT
