"""Principal coordinates: invertible, uncorrelated on both sides, and none discards more cheaply."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fxprune.choose.basis.principal import principal

torch.manual_seed(0)


def moment(n: int, samples: int = 50, heads: int = 0) -> Tensor:
    x = torch.randn(*([heads] if heads else []), samples, n, dtype=torch.float64)
    x = x @ torch.randn(n, n, dtype=torch.float64)
    return x.mT @ x / samples


def cost_of(matrix: Tensor, keep: int, c: Tensor, g: Tensor) -> float:
    """Estimated KL of setting all but the first coordinates of a basis to zero."""
    gone = matrix.inverse()[:, keep:] @ matrix[keep:]
    return float(torch.trace(gone @ c @ gone.mT @ g)) / 2


@pytest.mark.parametrize("keep", [1, 3, 5])
def test_trailing_coordinates_cost_what_is_said_and_no_other_basis_less(keep: int) -> None:
    c, g = moment(6), moment(6)
    found = principal(c, g)
    assert cost_of(found.matrix, keep, c, g) == pytest.approx(float(found.costs[keep:].sum()), rel=1e-8)
    for _ in range(20):
        other = torch.randn(6, 6, dtype=torch.float64)
        nearby = found.matrix + 0.1 * other
        assert cost_of(other, keep, c, g) >= cost_of(found.matrix, keep, c, g)
        assert cost_of(nearby, keep, c, g) >= cost_of(found.matrix, keep, c, g)


def test_vectors_and_covectors_are_uncorrelated_and_equally_long() -> None:
    c, g = moment(5, heads=3), moment(5, heads=3)
    found = principal(c, g)
    vectors = found.matrix @ c @ found.matrix.mT
    inverse = found.matrix.inverse()
    covectors = inverse.mT @ g @ inverse
    torch.testing.assert_close(vectors, torch.diag_embed((2 * found.costs).sqrt()), atol=1e-8, rtol=1e-8)
    torch.testing.assert_close(covectors, vectors, atol=1e-6, rtol=1e-6)


def test_what_no_sample_shows_leaves_the_change_invertible() -> None:
    few = moment(8, samples=3)
    found = principal(few, moment(8, samples=2))
    eye = found.matrix @ torch.linalg.inv(found.matrix)
    torch.testing.assert_close(eye, torch.eye(8, dtype=torch.float64), atol=1e-8, rtol=0)
    none = principal(torch.zeros(4, 4), torch.zeros(4, 4))
    assert torch.linalg.matrix_rank(none.matrix) == 4 and not none.costs.any()
