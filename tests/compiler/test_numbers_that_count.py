"""Norms by hand, whose modules hold the root of what they run over: it follows what is kept of that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_same, randomise
from torch import Tensor, nn

import fxprune


class RootMeanSquare(nn.Module):
    """A norm of length one, times the root of how many there are."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.scale, self.gamma = shape[-1] ** 0.5, nn.Parameter(torch.ones(*shape))

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=-1) * self.scale * self.gamma


class Attends(nn.Module):
    """Norms of the stream, and of queries and keys in each head."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.embed, self.norm, self.qkv = nn.Linear(12, dim), RootMeanSquare(dim), nn.Linear(dim, 3 * dim)
        self.q_norm, self.k_norm = (RootMeanSquare(heads, 1, dim // heads) for _ in range(2))
        self.proj, self.last, self.head = nn.Linear(dim, dim), RootMeanSquare(dim), nn.Linear(dim, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        parts = self.qkv(self.norm(x)).chunk(3, -1)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in parts)
        y = F.scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v, scale=0.2)
        return self.head(self.last(x + self.proj(y.transpose(1, 2).flatten(2))))


@pytest.mark.parametrize("way", [{}, {"attention": "head_dim"}, {"attention": "heads"}], ids=str)
def test_the_class_is_whole(way: dict[str, Any], tmp_path: Path, capture: str) -> None:
    model, x = randomise(Attends(48, 4)).double().eval(), torch.randn(2, 7, 12).double()
    own = fxprune.prune(model, 0.5, example_inputs=x, form="module", capture=capture, **way)
    assert type(own) is Attends and fxprune.report(model, own).replaced == ()
    assert own.norm.scale == own.last.scale == 24**0.5
    assert own.q_norm.scale == (6 if "head_dim" in way.values() else 12) ** 0.5
    fxprune.verify(model, own)
    graph = fxprune.apply(model, fxprune.plan_of(own), example_inputs=x)
    assert_same(own(x[:1]), graph(x[:1]), 1e-12)
    fxprune.save(own, tmp_path, build="mine:make")
    assert_same(fxprune.load(tmp_path, model=Attends(48, 4).double())(x), own(x), 1e-12)
