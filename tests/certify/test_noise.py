"""Models that draw noise in eval mode: certified, and noise hides no fault before it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from helpers import by_capture, randomise
from torch import Tensor, nn

import fxprune
from fxprune.certify.weights import PlannedWeights
from fxprune.graph.tensors import tensor_at

Draw = Callable[[Tensor], Tensor]


class Noisy(nn.Module):
    """Noise amid channels that shrink."""

    def __init__(self, draw: Draw) -> None:
        super().__init__()
        self.draw = draw
        self.first, self.second, self.head = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.draw(self.first(x))).relu())


def _within_heads(x: Tensor, draw: Draw) -> Tensor:
    heads = x.unflatten(-1, (4, -1)).transpose(1, 2)
    return draw(heads.flatten(0, 1)).unflatten(0, (x.shape[0], -1)).transpose(1, 2).flatten(2)


# Of values, through which a fault before them shows.
SAMPLED: dict[str, Draw] = {
    "dropout": lambda x: F.dropout(x, 0.3, True),
    "dropout of channels": lambda x: F.dropout2d(x.mT[..., None], 0.3, True)[..., 0].mT,
    "dropout of heads beside samples": lambda x: _within_heads(x, lambda y: F.dropout(y, 0.3, True)),
    "alpha dropout": lambda x: F.alpha_dropout(x, 0.3, True),
    "bernoulli": lambda x: torch.bernoulli(x.sigmoid()),
    "normal": lambda x: torch.normal(x, x.abs()),
    "rrelu": lambda x: F.rrelu(x, training=True),
    "poisson": lambda x: torch.poisson(10 * x.abs()),
    "gumbel": lambda x: F.gumbel_softmax(x.mean(-1), dim=-1)[..., None] * x,
}
# Of a shape.
FILLED: dict[str, Draw] = {
    "rand": lambda x: x * torch.rand(x.shape),
    "two": lambda x: x + torch.randn_like(x) * torch.rand_like(x),
    "in place": lambda x: x * torch.empty_like(x).bernoulli_(0.7),
    "filled": lambda x: x + x.new_empty(x.shape).uniform_(-1, 1),
    "stochastic depth": lambda x: x * (torch.rand((x.shape[0],) + (1,) * (x.ndim - 1)) > 0.3),
    "whole numbers": lambda x: x * torch.randint(0, 3, x.shape),
    "attention": lambda x: F.scaled_dot_product_attention(x, x, x, dropout_p=0.2),
}
DRAWS = SAMPLED | FILLED


@pytest.mark.parametrize(("name", "capture"), by_capture(DRAWS, 2))
def test_noise_is_the_same_on_both_sides(name: str, capture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = randomise(Noisy(DRAWS[name])).eval()
    pruned = fxprune.prune(model, 0.5, example_inputs=torch.randn(2, 5, 6), capture=capture)
    assert pruned.second.out_features == 8
    assert fxprune.verify(model, pruned).exact
    assert fxprune.verify(model, pruned, batch=3).exact

    monkeypatch.setattr(PlannedWeights, "changed", lambda self, pruned: {})  # outputs alone tell
    for weight in ("first.weight", "second.weight"):
        right = tensor_at(pruned, weight).data.clone()
        tensor_at(pruned, weight).data.mul_(1.01)
        assert fxprune.verify(model, pruned) > 1e-6, weight
        tensor_at(pruned, weight).data = right
