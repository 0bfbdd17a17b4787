"""Tables that a model's own code makes anew: whether it ran before or since is no matter to a result."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.errors import CertificateError


class Tabled(nn.Module):
    """Adds a table of positions to what two layers compute."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 5)
        self.made()

    def made(self) -> None:
        self.register_buffer("table", torch.zeros(1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.table is None or self.is_short(x.shape[1]):
            self.table = torch.arange(x.shape[1], dtype=x.dtype, device=x.device) / 10
            self.longest = x.shape[1]
        return self.b(torch.relu(self.a(x))) + self.table[None, : x.shape[1], None]

    def is_short(self, n: int) -> bool:
        return self.table.shape[0] != n


class Attribute(Tabled):
    def made(self) -> None:
        self.table = None


class Growing(Tabled):
    def made(self) -> None:
        self.longest = 2
        self.register_buffer("table", torch.arange(2.0) / 10, persistent=False)

    def is_short(self, n: int) -> bool:
        return n > self.longest


@pytest.mark.parametrize("kind", [Tabled, Attribute, Growing])
def test_when_the_original_ran_is_no_matter(kind: type[Tabled], tmp_path: Path) -> None:
    x, longer = torch.randn(2, 6, 8), torch.randn(3, 9, 8)
    fresh = kind().eval()
    ran, ran_longer = copy.deepcopy(fresh), copy.deepcopy(fresh)
    ran(x), ran_longer(longer)
    for model, original in ((fresh, ran_longer), (ran, fresh)):
        pruned = fxprune.prune(model, 0.5, example_inputs=x)
        fxprune.save(pruned, tmp_path, build="somewhere:Tabled")
        loaded = fxprune.load(tmp_path, model=original)
        assert torch.equal(loaded(x), pruned(x))
        assert fxprune.verify(original, loaded) < 1e-8
    assert fxprune.verify(original, pruned) < 1e-8


def test_a_table_that_was_changed_is_seen() -> None:
    x = torch.randn(2, 6, 8)
    model = Tabled().eval()
    model(x)
    pruned = fxprune.prune(model, 0.5, example_inputs=x)
    model.table = torch.ones(6)
    assert fxprune.verify(model, pruned).changed.keys() == {"table"}
    model.table = torch.ones(1)  # which is made anew in the call
    assert fxprune.verify(model, pruned) < 1e-8
    model.is_short = lambda n: False
    with pytest.raises(CertificateError, match="table"):
        fxprune.verify(model, pruned)
