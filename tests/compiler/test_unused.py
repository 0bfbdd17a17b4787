"""form="module": code that computes what no output shows runs on weights of the new sizes as well."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxprune
from fxprune.certify.zoo import randomise
from fxprune.result.pruned_module import record_of


class Block(nn.Module):
    """A scaled residual branch."""

    def __init__(self, dim: int = 48) -> None:
        super().__init__()
        self.norm, self.fc1, self.fc2 = nn.LayerNorm(dim), nn.Linear(dim, 96), nn.Linear(96, dim)
        self.scale = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * self.fc2(F.gelu(self.fc1(self.norm(x))))


class Idle(nn.Module):
    """Computes a pooled head, a last block, or both for nothing; what `heads` asks for it returns."""

    def __init__(self, idle: str) -> None:
        super().__init__()
        self.idle = idle
        self.patches, self.blocks = nn.Conv2d(3, 48, 8, 8), nn.Sequential(Block(), Block())
        if idle != "head":
            self.last = Block()
        if idle != "block":
            self.pool, self.aux = (
                nn.LayerNorm(48),
                nn.Sequential(nn.Linear(48, 48), nn.Tanh(), nn.Linear(48, 3)),
            )
        self.head = nn.Linear(48, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.patches(x).flatten(2).mT)
        y = self.last(x) if self.idle != "head" else x
        if self.idle != "block":
            self.aux(self.pool(y[:, 0]))
        return self.head(x.mean(1))


@pytest.mark.parametrize("idle", ["head", "block", "both"])
def test_what_no_output_shows_has_the_new_sizes(idle: str) -> None:
    model, x = randomise(Idle(idle).eval()), torch.randn(2, 3, 32, 32)
    pruned = fxprune.prune(model, 0.5, example_inputs=x, form="module")
    own = record_of(pruned).own
    assert type(pruned) is Idle and own.is_whole, own.parts
    assert fxprune.verify(model, pruned, example_inputs=torch.randn(3, 3, 32, 32)) < 1e-8
    kept = fxprune.plan_of(pruned).kept["head.weight"][1]
    if idle != "block":  # its own channels stay, those that it reads go
        assert torch.equal(pruned.pool.weight, model.pool.weight[kept])
        assert torch.equal(pruned.aux[0].weight, model.aux[0].weight[:, kept])
        assert pruned.aux[2].weight.shape == (3, 48)
    if idle != "head":
        assert torch.equal(pruned.last.scale, model.last.scale[kept])
        assert torch.equal(pruned.last.fc2.weight, model.last.fc2.weight[kept])
    assert not hasattr(pruned, "kept") and {*pruned.state_dict()} == {*model.state_dict()}
