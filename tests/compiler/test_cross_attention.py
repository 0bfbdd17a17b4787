"""Attention from one tensor to another, with the three projections in one weight: the class stays whole."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_same, randomise
from torch import Tensor, nn

import fxprune

X, Y = (
    torch.randn(2, n, d, generator=torch.Generator().manual_seed(n)).double() for n, d in ((6, 10), (9, 12))
)


class Cross(nn.Module):
    """Queries of one tensor, keys and values of another."""

    def __init__(self, kdim: int | None = None, need_weights: bool = False, learned: bool = False) -> None:
        super().__init__()
        self.q, self.kv = nn.Linear(10, 48), nn.Linear(12, kdim or 48)
        self.attention = nn.MultiheadAttention(48, 4, batch_first=True, kdim=kdim, vdim=kdim)
        self.norm, self.out = nn.LayerNorm(48), nn.Linear(48, 5)
        self.queries = nn.Parameter(torch.zeros(7, 48)) if learned else None
        self.need_weights = need_weights

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        q, k = self.q(x), self.kv(y)
        if self.queries is not None:
            q = self.queries.expand(len(x), -1, -1) * q.mean(1, keepdim=True)
        return self.out(self.norm(q + self.attention(q, k, k, need_weights=self.need_weights)[0]))


class Decoder(nn.Module):
    """torch's own layer of a decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.kv, self.out = nn.Linear(10, 48), nn.Linear(12, 48), nn.Linear(48, 5)
        self.layers = nn.TransformerDecoder(nn.TransformerDecoderLayer(48, 4, 96, 0.0, batch_first=True), 2)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.out(self.layers(self.q(x), self.kv(y)))


class Sliced(nn.Module):
    """Rows of one weight, taken by slices; the scale is computed in forward."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.kv, self.out = nn.Linear(10, 48), nn.Linear(12, 48), nn.Linear(48, 5)
        self.weight, self.bias = nn.Parameter(torch.zeros(144, 48)), nn.Parameter(torch.zeros(144))
        self.proj = nn.Linear(48, 48)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        q, kv = self.q(x), self.kv(y)
        n = q.shape[-1]
        query = F.linear(q, self.weight[: self.proj.in_features], self.bias[: self.proj.in_features])
        key, value = F.linear(
            kv, self.weight[self.proj.in_features :], self.bias[self.proj.in_features :]
        ).chunk(2, -1)
        query, key, value = (t.unflatten(-1, (4, -1)).transpose(1, 2) for t in (query, key, value))
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        return self.out(q + self.proj(mixed)) * (n > 0)


MODELS = {
    "two tensors": Cross,
    "keys of another width": lambda: Cross(kdim=24),
    "weights wanted": lambda: Cross(need_weights=True),
    "learned queries": lambda: Cross(learned=True),
    "decoder": Decoder,
    "sliced": Sliced,
}


@pytest.mark.parametrize("way", [{"attention": "head_dim"}, {"scope": "global"}], ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_the_class_is_whole(name: str, way: dict[str, Any]) -> None:
    model = randomise(MODELS[name]()).double().eval()
    own = fxprune.prune(model, 0.5, example_inputs=(X, Y), form="module", **way)
    assert type(own) is type(model) and fxprune.report(model, own).replaced == ()
    fxprune.verify(model, own, example_inputs=(X, Y))
    graph = fxprune.apply(model, fxprune.plan_of(own), example_inputs=(X, Y))
    for x, y in ((X, Y), (X[:1], Y[:1]), (X.repeat(3, 2, 1), Y.repeat(3, 1, 1))):
        assert_same(own(x, y), graph(x, y), 1e-10)
