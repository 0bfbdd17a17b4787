"""Sizes of the input among the numbers of a call that torch parses in C: each call of the graph asks anew."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import randomise
from torch import Tensor, nn

import fxprune

Code = Callable[[Tensor], Tensor]


class Coded(nn.Module):
    """A convolution, what some code makes of it, and a layer on the mean of that."""

    def __init__(self, code: Code) -> None:
        super().__init__()
        self.first, self.last, self.code = nn.Conv2d(3, 16, 3), nn.Linear(16, 4), code

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.code(self.first(x)).flatten(2).mean(2))


def generalised_mean(y: Tensor) -> Tensor:
    return F.avg_pool2d(y.clamp(min=1e-6).pow(3), (y.size(-2), y.size(-1))).pow(1 / 3)


def gated(y: Tensor) -> Tensor:
    """As attention over channels does: both poolings of all places."""
    size = y.shape[2:]
    return y * (nn.AvgPool2d(size)(y) + nn.MaxPool2d(size)(y)).sigmoid()


POOLINGS: dict[str, Code] = {
    "by a slice": lambda y: F.avg_pool2d(y, y.size()[2:]),
    "by a layer": lambda y: nn.AvgPool2d(y.shape[2:])(y),
    "by name": lambda y: F.avg_pool2d(y, kernel_size=y.shape[2:], stride=y.shape[2:]),
    "by a list": lambda y: F.avg_pool2d(y, [y.shape[2], y.shape[3]]),
    "by parts": lambda y: F.avg_pool2d(y, (y.shape[2] // 2, y.shape[3] // 3), stride=y.shape[2] // 3),
    "of one dimension": lambda y: F.avg_pool1d(y.flatten(2), y.shape[2] * y.shape[3]),
    "of three": lambda y: F.avg_pool3d(y[:, :, None], (1, *y.shape[2:])),
    "the largest": lambda y: torch.max_pool2d(y, (y.size(-2), y.size(-1))),
    "generalised": generalised_mean,
    "gated": gated,
}
OTHERS: dict[str, Code] = {
    "roll": lambda y: torch.roll(y, (y.shape[2] // 2, y.shape[3] // 3), (2, 3)) * y,
    "roll by one": lambda y: torch.roll(y, y.shape[3] // 2, 3) * y,
    "narrow": lambda y: torch.narrow(y, 2, 1, y.shape[2] // 2),
    "select": lambda y: torch.select(y, 3, y.shape[3] // 2),
    "topk": lambda y: torch.topk(y.flatten(2), y.shape[2] // 2, 2)[0],
    "median": lambda y: torch.kthvalue(y, y.shape[2] // 2, 2)[0],
    "triangle": lambda y: torch.tril(y, y.shape[2] // 4),
    "padding": lambda y: F.conv2d(y, y.new_ones(16, 1, 3, 3), padding=(y.shape[2] // 3, 1), groups=16),
    "places": lambda y: torch.layer_norm(y, (y.shape[2], y.shape[3])).relu(),
}


def constant(*shape: int) -> Tensor:
    return torch.arange(float(torch.Size(shape).numel()), dtype=torch.float64).view(shape).cos()


MADE: dict[str, Code] = {
    "a token": lambda y: y.flatten(2) * constant(1, 16, 1).expand(y.shape[0], -1, -1),
    "a matrix": lambda y: constant(16, 16)[None].expand(y.shape[0], -1, -1) @ y.flatten(2),
    "rows": lambda y: y * constant(1, 1).repeat(y.shape[2], 1),
    "zeros": lambda y: y * constant(1).new_ones(y.shape[3]),
    "rolled": lambda y: y * constant(16, 1, 1).roll(y.shape[2], 0),
    "viewed": lambda y: y * constant(16).view(y.shape[0] // y.shape[0], 16, 1, 1),
}

ARRAYS: dict[str, Code] = {
    "counted": lambda y: y * torch.tensor(np.arange(y.shape[3]) / y.shape[3]),
    "typed": lambda y: y * torch.from_numpy(np.arange(y.shape[2], dtype=np.float64))[:, None],
    "cast": lambda y: y * torch.as_tensor(np.arange(y.shape[3]).astype(np.float32)),
    "between": lambda y: y * torch.from_numpy(np.linspace(-1, 1, y.shape[3])),
}


def images(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


ALL = POOLINGS | OTHERS | MADE | ARRAYS


@pytest.mark.parametrize("name", ALL)
def test_each_size_has_its_own_number(name: str) -> None:
    model = randomise(Coded(ALL[name])).double().eval()
    graph = fxprune.trace(model, images(2, 3, 14, 14), capture="symbolic")
    for x in (images(2, 3, 14, 14), images(3, 3, 16, 16), images(1, 3, 20, 26)):
        assert torch.allclose(graph(x), model(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", [*POOLINGS, "roll", "places", "a token", *ARRAYS])
def test_such_models_are_pruned(name: str) -> None:
    model, x = randomise(Coded(ALL[name])).double().eval(), images(2, 3, 14, 14)
    pruned = fxprune.prune(model, 0.5, example_inputs=x)
    assert fxprune.verify(model, pruned) < 1e-9
    assert fxprune.verify(model, pruned, example_inputs=images(3, 3, 20, 16)) < 1e-9
    assert pruned.get_submodule("first").weight.shape[0] == 8
