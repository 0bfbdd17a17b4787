"""Half of a symmetric matrix is all of it."""

from __future__ import annotations

import pytest
import torch

from fxprune.choose.importance.gram import SMALLEST, gram


@pytest.mark.parametrize("n", [1, 7, SMALLEST, SMALLEST + 1, 4 * SMALLEST + 3])
@pytest.mark.parametrize("leading", [(), (2,)])
def test_it_is_the_product_and_symmetric(n: int, leading: tuple[int, ...]) -> None:
    x = torch.randn(*leading, 5, n, dtype=torch.float64)
    assert torch.allclose(gram(x), x.mT @ x, rtol=1e-12)
    assert torch.allclose(gram(x), gram(x).mT, rtol=1e-12)
