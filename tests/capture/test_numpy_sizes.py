"""Sizes in NumPy's arrays: what code computes of them is followed, what it checks of them is guarded."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import assert_same, randomise
from torch import Tensor, nn

import fxprune


class Net(nn.Module):
    """A convolution, what code does with its image by NumPy, a head."""

    def __init__(self, does: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.head, self.does = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 4, 1), does

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.does(self.a(x)))


def multiples_only(y: Tensor) -> Tensor:
    remainder = (np.array(y.shape[2:]) % np.power(2, 2)) > 0
    if remainder.any():
        raise ValueError(f"sizes {np.where(remainder)[0].tolist()} must be multiples")
    return y


def in_a_row(y: Tensor) -> Tensor:
    return y.reshape(-1, y.shape[1], np.prod(y.shape[2:])).flip(-1).reshape(y.shape)


def halved(y: Tensor) -> Tensor:
    return F.interpolate(y, size=tuple(np.array(y.shape[-2:]) // 2))


def padded(y: Tensor) -> Tensor:
    missing = -np.asarray([y.shape[-2], y.shape[-1]]) % 8
    return F.pad(y, (0, missing[1], 0, missing[0]))


@pytest.mark.parametrize("does", [multiples_only, in_a_row, halved, padded])
def test_they_are_followed(does: Callable[[Tensor], Tensor]) -> None:
    model = randomise(Net(does)).double().eval()
    pruned = fxprune.prune(model, 0.5, example_inputs=image(2, 16, 12), capture="symbolic")
    assert pruned.a.out_channels == 8 and fxprune.verify(model, pruned) < 1e-10
    whole = fxprune.trace(model, image(2, 16, 12), capture="symbolic")
    for shape in ((2, 16, 12), (1, 16, 12), (3, 8, 20)):
        x = image(*shape)
        assert_same(whole(x), model(x), 1e-12)


def test_what_code_refuses_is_refused() -> None:
    model = randomise(Net(multiples_only)).double().eval()
    whole = fxprune.trace(model, image(2, 16, 12), capture="symbolic")
    for side in (10, 15):
        with pytest.raises(ValueError, match=r"another branch at .*test_numpy_sizes.py:\d+"):
            whole(image(2, side, 12))


def image(batch: int, height: int, width: int) -> Tensor:
    return torch.randn(batch, 3, height, width, dtype=torch.float64)
