"""Tensors that code makes of others: of a size by `new`, deep and shallow copies, written to afterwards."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from helpers import assert_same, randomise
from torch import Tensor, nn

import fxprune


def numbers(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """A layer, a mask that code makes of what it gives, a head."""

    def __init__(self, make: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.head, self.make = nn.Linear(8, 16), nn.Linear(16, 3), make

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return self.head(y * self.make(y))


def of_sizes(y: Tensor) -> Tensor:
    return y.new(y.shape[1], 1).fill_(0.5)


def of_numbers(y: Tensor) -> Tensor:
    return y.new(1, 1, 1).zero_() + 2


def of_nothing(y: Tensor) -> Tensor:
    return torch.ones(1).to(y) * (y.new().numel() + 2)


def deep(y: Tensor) -> Tensor:
    first = torch.zeros(y.shape[1], 1, dtype=y.dtype)
    first[0] = 1.0
    second = copy.deepcopy(first)
    second[-1] = 2.0
    return first + 3 * second


def shallow(y: Tensor) -> Tensor:
    first = y.mean(-1, keepdim=True).detach()
    second = copy.copy(first)
    second[:, 0] = 2.0
    return first


@pytest.mark.parametrize("make", [of_sizes, of_numbers, of_nothing, deep, shallow])
def test_it_is_followed(make: Callable[[Tensor], Tensor]) -> None:
    model = randomise(Net(make)).double().eval()
    pruned = fxprune.prune(model, 0.5, example_inputs=numbers(2, 5, 8), capture="symbolic")
    assert pruned.a.out_features == 8 and fxprune.verify(model, pruned) < 1e-10
    whole = fxprune.trace(model, numbers(2, 5, 8), capture="symbolic")
    for shape in ((2, 5, 8), (1, 5, 8), (3, 9, 8)):
        assert_same(whole(numbers(*shape)), model(numbers(*shape)), 1e-12)
