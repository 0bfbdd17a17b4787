"""A module whose code compares types by identity keeps its `int`: the number that it asks for is guarded."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.errors import InputSizeError


class Net(nn.Module):
    """The side of a square number of tokens, and another way where it is no whole number."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        side = int(math.sqrt(x.shape[1]))
        kind = type(side)
        x = self.a(x).unflatten(1, (side, side))
        return self.b(x.mean((1, 2)) * (2 if kind is int else 3))


def test_a_number_that_must_be_one_is_guarded() -> None:
    model, x = Net(), torch.randn(2, 9, 8)
    whole = fxprune.prune(model, 0.0, example_inputs=x, capture="symbolic")
    torch.testing.assert_close(whole(x), model(x))
    with pytest.raises(InputSizeError, match=r"test_kept_types.py:\d+"):
        whole(torch.randn(2, 16, 8))
    assert "int" not in globals() and "float" not in globals()
