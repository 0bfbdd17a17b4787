"""Heads are told from head dims by most of the weights, where one projection has them the other way."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxprune
from fxprune.certify.zoo import randomise


class Turned(nn.Module):
    """An attention whose output has the heads innermost: `(head_dim heads)`."""

    def __init__(self, dim: int = 48, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.embed, self.head = nn.Conv2d(3, dim, 8, 8), nn.Linear(dim, 5)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).mT
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v).permute(0, 2, 3, 1).reshape(b, n, c)
        return self.head((x + self.proj(y)).mean(1))


@pytest.mark.parametrize("attention", ["auto", "heads", "head_dim"])
@pytest.mark.parametrize("capture", ["symbolic", "export"])
def test_an_attention_with_its_heads_innermost_shrinks(attention: str, capture: str) -> None:
    model, x = randomise(Turned().eval()), torch.randn(2, 3, 32, 32)
    options = {"example_inputs": x, "capture": capture, "attention": attention}
    pruned = fxprune.prune(model, 0.5, **options)
    assert fxprune.verify(model, pruned) < 1e-8
    assert pruned.get_submodule("proj").in_features == 24
    roles = {group.role: group.size for group in fxprune.analyze(model, example_inputs=x).prunable}
    assert roles["heads"] == 4 and roles["head_dim"] == 12
    if capture == "symbolic":
        own = fxprune.prune(model, 0.5, form="module", **options)
        assert type(own) is Turned and fxprune.verify(model, own) < 1e-8
