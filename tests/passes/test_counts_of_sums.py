"""Variances written by hand, over a shrinking axis: each is one of what is kept."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from helpers import randomise
from torch import Tensor, nn

import fxprune

Variance = Callable[[Tensor], Tensor]

# name -> how it is written where the axis has 32 channels and the input 5 tokens
VARIANCES: dict[str, Variance] = {
    "read": lambda d: d.pow(2).sum(-1, keepdim=True) / (d.shape[-1] - 1),
    "written": lambda d: (d**2).sum(-1, keepdim=True) / 31,
    "viewed": lambda d: (d * d).sum(-1).unsqueeze(-1) / (d.size(-1) - 1),
    "corrected": lambda d: d.square().mean(-1, keepdim=True) * d.shape[-1] / (d.shape[-1] - 1),
    "of tokens as well": lambda d: (d * d).sum((1, 2))[:, None, None] / (d.shape[1] * d.shape[2] - 1),
    "of tokens alone": lambda d: (d * d).sum(1, keepdim=True) / (d.shape[1] - 1),
    "of written tokens alone": lambda d: (d * d).sum(1, keepdim=True) / 4,
}


class Standardised(nn.Module):
    def __init__(self, variance: Variance, width: int = 32) -> None:
        super().__init__()
        self.fc, self.head, self.variance = nn.Linear(8, width), nn.Linear(width, 4), variance

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc(x)
        x = x - x.mean(-1, keepdim=True)
        return self.head(x / (self.variance(x) + 1e-5).sqrt())


@pytest.mark.parametrize(
    ("spelling", "capture"),
    [*((name, "symbolic") for name in VARIANCES), ("read", "export"), ("of tokens alone", "export")],
)
def test_a_variance_is_of_what_is_kept(spelling: str, capture: str) -> None:
    variance = VARIANCES[spelling]
    model = randomise(Standardised(variance).eval()).double()
    pruned = fxprune.prune(model, 0.5, example_inputs=torch.randn(2, 5, 8).double(), capture=capture)
    width = pruned.fc.out_features
    assert width == 16
    by_hand = Standardised(VARIANCES["read"] if spelling == "written" else variance, width).double()
    by_hand.load_state_dict(pruned.state_dict())
    for n, tokens in ((1, 5), (3, 7)):
        x = torch.randn(n, tokens, 8).double()
        torch.testing.assert_close(pruned(x), by_hand(x), rtol=0, atol=1e-12)
    assert fxprune.verify(model, pruned)


class NamedAsAnOp(nn.Module):
    """Its layers have the names of views and sums."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.squeeze, self.sum = nn.Linear(8, 16), nn.Linear(16, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.sum(self.squeeze(self.fc(x).sum(1)) / 5) / 5


def test_a_layer_of_an_ops_name_is_none() -> None:
    model = randomise(NamedAsAnOp().eval())
    whole = fxprune.prune(model, 0.0, example_inputs=torch.randn(2, 5, 8), capture="symbolic")
    x = torch.randn(3, 5, 8)
    torch.testing.assert_close(whole(x), model(x))


class CountsAfterABranch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.head = nn.Linear(8, 16), nn.Linear(16, 4)
        self.blocks = nn.ModuleList(nn.Linear(16, 16) for _ in range(2))
        self.weight, self.bias = nn.Parameter(torch.ones(16)), nn.Parameter(torch.zeros(16))

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc(x)
        for block in self.blocks:
            x = x + block(x)
        total = x.sum(1) * (1 / x.shape[1]) + x.var(1) * (x.shape[1] - 1) / x.shape[1]
        return self.head(nn.functional.layer_norm(total, (16,), self.weight, self.bias))


@pytest.mark.parametrize("depth", [0.0, 0.5])
def test_a_count_is_of_what_stands_before_a_branch_that_goes(depth: float) -> None:
    model = randomise(CountsAfterABranch().eval()).double()
    x = torch.randn(2, 5, 8).double()
    pruned = fxprune.prune(model, 0.5, depth=depth, example_inputs=x)
    assert fxprune.verify(model, pruned)
