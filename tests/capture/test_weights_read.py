"""Weights that code finds by going through a model are followed as weights, or the trace is refused."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import numpy as np
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


class Scaled(Net):
    def __init__(self, last: Callable[[Net, Tensor], Tensor]) -> None:
        super().__init__(last)
        self.register_buffer("scale", torch.ones(4))


def of_the_state(net: Net, x: Tensor) -> Tensor:
    state = net.state_dict()
    return F.linear(x, net.head.weight, state["head.bias"]) + net.head.bias


def listed(net: Net, x: Tensor) -> Tensor:
    weight, bias = net.head.parameters()
    return F.linear(x, weight, bias)


def detached(net: Net, x: Tensor) -> Tensor:
    named = dict(net.named_parameters())
    return net.head(x) + F.linear(x, named["head.weight"].detach())


def viewed(net: Net, x: Tensor) -> Tensor:
    return net.head(x) * net.head._parameters["bias"].view(1, -1)


def repeated(net: Net, x: Tensor) -> Tensor:
    return net.head(x) + net.head._parameters["bias"].repeat(1, 2)[:, 2:6]


def expanded(net: Net, x: Tensor) -> Tensor:
    return net.head(x) + dict(net.named_parameters())["head.bias"].expand(2, 4).sum(0)


def rolled(net: Net, x: Tensor) -> Tensor:
    return net.head(x) * torch.roll(net.head._parameters["bias"], 1)


def narrowed(net: Net, x: Tensor) -> Tensor:
    return net.head(x) + torch.narrow(net._modules["head"]._parameters["bias"], 0, 1, 1)


def reshaped_buffer(net: Net, x: Tensor) -> Tensor:
    return net.head(x) * net._buffers["scale"].reshape(1, 4)


def rolled_buffer(net: Net, x: Tensor) -> Tensor:
    return net.head(x) * dict(net.named_buffers())["scale"].roll(1)


def copied(net: Net, x: Tensor) -> Tensor:
    return net.head(x) * copy.deepcopy(net._buffers["scale"])


def doubled(net: Net, x: Tensor) -> Tensor:
    return net.head(x) * next(net.buffers()).view(-1).mul_(2)


def rooted(net: Net, x: Tensor) -> Tensor:
    return net.head(x) * math.sqrt(abs(net._buffers["scale"][0]))


def largest_of_two(net: Net, x: Tensor) -> Tensor:
    return net.head(x) * max(net._buffers["scale"][0], net._buffers["scale"][1])


def by_numpy(net: Net, x: Tensor) -> Tensor:
    return net.head(x) * torch.from_numpy(np.asarray(net._buffers["scale"]) + 1)


def by_text(net: Net, x: Tensor) -> Tensor:
    return net.head(x) * float(f"{net._buffers['scale'][0]}")


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


PASSED_ON = [viewed, repeated, expanded, rolled, narrowed, reshaped_buffer, rolled_buffer]
NUMBERS = [copied, doubled, rooted, largest_of_two, by_numpy, by_text]


@pytest.mark.parametrize("last", [norm, largest, branch, clamped, of_the_dict, *PASSED_ON, *NUMBERS])
def test_numbers_of_weights_are_no_constants(last: Callable[[Net, Tensor], Tensor]) -> None:
    model = randomise(Scaled(last)).double().eval()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    with pytest.raises(CaptureError, match="computes with weights that it finds by going through all"):
        fxprune.trace(model, X, capture="symbolic")
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


@pytest.mark.parametrize("last", [of_the_dict, *PASSED_ON])
def test_export_follows_what_is_computed_of_weights(last: Callable[[Net, Tensor], Tensor]) -> None:
    model = randomise(Scaled(last)).double().eval()
    pruned = fxprune.prune(model, 0.5, example_inputs=X)
    assert fxprune.verify(model, pruned) < 1e-8
    same = fxprune.prune(model, 0.0, example_inputs=X)
    other = randomise(Scaled(last), seed=1).double().eval()
    same.load_state_dict({name: t for name, t in other.state_dict().items() if name in same.state_dict()})
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
