"""Tables that the first call makes: a fresh original lacks them, and takes a folder of one that had them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import randomise
from torch import Tensor, nn

import fxprune


class Lazily(nn.Module):
    """Makes a table of places in its first call, under a name that it has not before."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.places, self.head = nn.Linear(8, 16), nn.Linear(2, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[1]
        if not hasattr(self, "table") or len(self.table) != n:
            self.table = torch.stack([torch.arange(n), torch.arange(n).flip(0)], -1).to(x) / n
        return self.head(self.embed(x) + self.places(self.table))


@pytest.mark.parametrize("form", ["graph", "module"])
@pytest.mark.parametrize("length", [5, 3000])  # the numbers of a large table are not in the record
def test_a_fresh_original_takes_it(length: int, form: str, tmp_path: Path) -> None:
    model, x = randomise(Lazily()).double().eval(), torch.randn(2, length, 8).double()
    model(x)
    pruned = fxprune.prune(model, 0.5, example_inputs=x, form=form)
    fxprune.save(pruned, tmp_path, build="mine:make")
    for fresh in (Lazily().double(), model):
        loaded = fxprune.load(tmp_path, model=fresh)
        torch.testing.assert_close(loaded(x[:1]), pruned(x[:1]), rtol=0, atol=1e-12)
    assert not hasattr(Lazily(), "table")
