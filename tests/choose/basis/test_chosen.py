"""What the readers of a stream ask for: derivatives of few samples, and the rows of their weights."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers import randomise
from torch import nn

import fxprune
from fxprune.choose.basis.chosen import ROWS, _by_rows
from fxprune.choose.importance.gathered import Moments


@pytest.mark.parametrize("derivatives", [1, ROWS, 100 * ROWS])
def test_rows_count_less_the_more_derivatives_there_are(derivatives: int) -> None:
    torch.manual_seed(0)
    model = randomise(nn.Sequential(nn.Linear(6, 5), nn.RMSNorm(5), nn.Linear(5, 4)))
    analysis = fxprune.analyze(model, example_inputs=torch.randn(2, 6))
    stream = next(g for g in analysis.prunable if g.size == 5)
    x, g = (torch.randn(9, 5, dtype=torch.float64) for _ in range(2))
    known = Moments(x.mT @ x, x.sum(0), g.mT @ g, derivatives)
    weight = torch.randn(4, 5)
    found = _by_rows(known, weight, stream)
    rows = weight.double().mT @ weight.double()
    scale = (known.vectors * known.covectors).sum() / (known.vectors * rows).sum()
    share = ROWS / (ROWS + derivatives)
    torch.testing.assert_close(found.covectors, share * scale * rows + (1 - share) * known.covectors)
    # Together they are as long as they were.
    vectors = known.vectors
    torch.testing.assert_close((found.covectors * vectors).sum(), (known.covectors * vectors).sum())
    assert _by_rows(known, None, stream) == known
    assert replace(found, covectors=known.covectors) == known
