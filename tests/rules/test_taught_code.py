"""Rules for a user's plain functions and module classes: their calls stay in the graph, and are asked."""

from __future__ import annotations

import pytest
import torch
from helpers import randomise
from torch import Tensor, nn

import fxprune
from fxprune import DEFAULT_RULES, Flow, Op
from fxprune.rules import Typed

X = torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(1))


def halved_norm(x: Tensor, scale: Tensor) -> Tensor:
    """A norm over the last dimension, by a count that it takes from the shape it sees."""
    total = x.square().sum(-1, keepdim=True)
    return x / (total / x.shape[-1] + 1e-5).sqrt() * scale


class OwnNorm(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        return halved_norm(x, self.scale)


class ByFunction(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.out = nn.Linear(6, 24), nn.Linear(24, 4)
        self.scale = nn.Parameter(torch.ones(24))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(halved_norm(self.up(x), scale=self.scale))


class ByModule(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.norm, self.out = nn.Linear(6, 24), OwnNorm(24), nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.norm(self.up(x)))


def axes(x: Typed, scale: Typed) -> Flow:
    return Flow(x.axes, same=[(x.axes[-1], scale.axes[0])], reduced=[x.axes[-1]])


def masked(x: Tensor, scale: Tensor, mask: Tensor) -> Tensor:
    mean = (x.square() * mask).sum(-1, keepdim=True) / mask.sum(-1, keepdim=True)
    return x / (mean + 1e-5).sqrt() * scale


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("op", [Op(axes), Op(axes, masked)], ids=["rule", "masked"])
@pytest.mark.parametrize(
    ("model", "taught", "weight"),
    [(ByFunction, halved_norm, "scale"), (ByModule, OwnNorm, "norm.scale")],
)
def test_the_rule_is_asked(model: type[nn.Module], taught: type, weight: str, op: Op, full: bool) -> None:
    name = f"{taught.__module__}.{taught.__qualname__}" if full else taught.__name__
    rules = DEFAULT_RULES.extended({name: op})
    dense = randomise(model().eval())
    pruned = fxprune.prune(dense, 0.5, example_inputs=X, rules=rules)
    called = [n for n in pruned.graph.nodes if n.target is taught or str(n.target) == "norm"]
    assert len(called) == 1
    assert pruned.get_parameter(weight).shape == (12,)
    assert fxprune.verify(dense, pruned, rules=rules) < 1e-8
    assert pruned(X[:1]).shape == (1, 5, 4)


@pytest.mark.parametrize(("model", "name"), [(ByFunction, "halved_norm"), (ByModule, "OwnNorm")])
def test_export_decomposes_it_and_says_so(model: type[nn.Module], name: str) -> None:
    rules = DEFAULT_RULES.extended({name: Op(axes, masked)})
    dense = randomise(model().eval())
    analysis = fxprune.analyze(dense, example_inputs=X, capture="export", rules=rules)
    assert any(f"decomposes {name}" in note for note in analysis.notes)
