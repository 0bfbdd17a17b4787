"""Random bases are of the freedom that they test, and no identity."""

from __future__ import annotations

import pytest
import torch

from fxprune.analysis.freedom.regions import Freedom
from fxprune.passes.rebasing.random import _drawn


@pytest.mark.parametrize("n", [2, 5, 16])
@pytest.mark.parametrize("centred", [True, False])
def test_rotations_turn_every_direction_that_they_may(n: int, centred: bool) -> None:
    """All of them, or where a mean is subtracted all but the vector of ones, which stays."""
    generator = torch.Generator().manual_seed(0)
    drawn = [_drawn(n, Freedom.ROTATION, centred, generator) for _ in range(4)]
    eye, ones = torch.eye(n, dtype=torch.float64), torch.ones(n, dtype=torch.float64)
    for matrix in drawn:
        torch.testing.assert_close(matrix @ matrix.mT, eye)
        assert torch.allclose(matrix @ ones, ones) is centred
    moved = torch.cat([matrix - eye for matrix in drawn])
    assert int(torch.linalg.matrix_rank(moved)) == n - centred


@pytest.mark.parametrize("n", [1, 5, 16])
def test_other_matrices_lose_no_digits(n: int) -> None:
    matrix = _drawn(n, Freedom.ANY, False, torch.Generator().manual_seed(0))
    assert float(torch.linalg.cond(matrix)) < 4.01
    assert n == 1 or not torch.allclose(matrix @ matrix.mT, torch.eye(n, dtype=torch.float64), atol=0.1)
