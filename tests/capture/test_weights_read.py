"""Weights that code finds by going through a model are followed as weights, or the trace is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from exactness import certified_at
from helpers import assert_same, randomise
from torch import Tensor, nn

import fxprune
from fxprune.errors import CaptureError

X = torch.randn(3, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Net(nn.Module):
    def __init__(self, last: Callable[[Net, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.head, self.last = nn.Linear(8, 12), nn.Linear(12, 4), last

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self, self.a(x).relu())


def of_the_state(net: Net, x: Tensor) -> Tensor:
    state = net.state_dict()
    return F.linear(x, net.head.weight, state["head.bias"]) + net.head.bias


def listed(net: Net, x: Tensor) -> Tensor:
    weight, bias = net.head.parameters()
    return F.linear(x, weight, bias)


def detached(net: Net, x: Tensor) -> Tensor:
    named = dict(net.named_parameters())
    return net.head(x) + F.linear(x, named["head.weight"].detach())


def norm(net: Net, x: Tensor) -> Tensor:
    with torch.no_grad():
        total = sum(p.abs().sum() for p in net.parameters())
    return net.head(x) * total


def largest(net: Net, x: Tensor) -> Tensor:
    return net.head(x) * max(float(p.max()) for p in net.parameters())


def branch(net: Net, x: Tensor) -> Tensor:
    return net.head(x) * (2 if any((p > 1).any() for p in net.parameters()) else 1)


def clamped(net: Net, x: Tensor) -> Tensor:
    with torch.no_grad():
        for p in net.parameters():
            p.clamp_(-0.1, 0.1)
    return net.head(x)


def of_the_dict(net: Net, x: Tensor) -> Tensor:
    with torch.no_grad():
        weight = net.head._parameters["weight"] * 2
    return net.head(x) + F.linear(x, weight)


@pytest.mark.parametrize("last", [of_the_state, listed, detached])
def test_a_weight_is_one_by_whatever_way(last: Callable[[Net, Tensor], Tensor], capture: str) -> None:
    model = randomise(Net(last)).double().eval()
    same, pruned = certified_at((0.0, 0.5), model, X, capture)
    assert pruned.get_parameter("a.weight").shape == (6, 8)
    other = randomise(Net(last), seed=1).double().eval()
    same.load_state_dict(other.state_dict())
    assert_same(same(X), other(X), 1e-12)


@pytest.mark.parametrize("last", [norm, largest, branch, clamped, of_the_dict])
def test_numbers_of_weights_are_no_constants(last: Callable[[Net, Tensor], Tensor]) -> None:
    model = randomise(Net(last)).double().eval()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    with pytest.raises(CaptureError, match="computes with weights that it finds by going through all"):
        fxprune.trace(model, X, capture="symbolic")
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


def test_export_follows_what_is_computed_of_weights() -> None:
    model = randomise(Net(of_the_dict)).double().eval()
    pruned = fxprune.prune(model, 0.5, example_inputs=X)
    assert fxprune.verify(model, pruned) < 1e-8
    same = fxprune.prune(model, 0.0, example_inputs=X)
    other = randomise(Net(of_the_dict), seed=1).double().eval()
    same.load_state_dict(other.state_dict())
    assert_same(same(X), other(X), 1e-12)


def hooked(net: Net, x: Tensor) -> Tensor:
    handle = net.head.register_forward_hook(lambda m, given, made: 3 * made)
    try:
        found: Tensor = net.head(x)
    finally:
        handle.remove()
    return found


def test_a_hook_that_code_registers_is_followed_or_refused() -> None:
    model = randomise(Net(hooked).eval().double())
    with pytest.raises(CaptureError, match="registers a hook on a Linear while it runs"):
        fxprune.prune(model, 0.0, example_inputs=X, capture="symbolic")
    assert_same(fxprune.prune(model, 0.0, example_inputs=X)(X), model(X), 1e-12)
