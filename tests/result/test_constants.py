"""What a model's code makes in a call is none of its modules' tensors: casts and layouts do not reach it."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable

import pytest
import torch
from helpers import assert_same, randomise
from torch import Tensor, nn

import fxprune
from fxprune.errors import CaptureError, InputArgumentError


class Angles(nn.Module):
    """Positions in float32, whatever the weights are: in bfloat16 they are others from 257 on."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 4)
        self.places = torch.arange(260.0, 276.0)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        return self.b(h * (self.places * torch.linspace(1.0, 3.0, 16)).sin().to(h.dtype))


def test_constants_keep_their_precision(capture: str) -> None:
    model, x = randomise(Angles().eval()), torch.randn(2, 6, 8)
    whole = fxprune.prune(model, 0.0, example_inputs=x, capture=capture)
    assert_same(whole.bfloat16()(x.bfloat16()), model.bfloat16()(x.bfloat16()), 0.0)
    assert fxprune.verify(model.float(), whole.float()) < 1e-8


class Laid(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        return self.b(h if h.is_contiguous() else 2 * h)


def test_another_layout_of_weights_is_refused_where_code_asks_for_layouts() -> None:
    model, x = randomise(Laid().eval()), torch.randn(2, 3, 6, 6)
    whole = fxprune.prune(model, 0.0, example_inputs=x)
    with pytest.raises(InputArgumentError, match="memory format"):
        whole.to(memory_format=torch.channels_last)
    assert_same(whole.double()(x.double()), model.double()(x.double()), 1e-12)


def by_the_hour(h: Tensor) -> Tensor:
    return h * (1 + int(time.time()) // 3600)


def by_the_day(h: Tensor) -> Tensor:
    return h * datetime.datetime.now().toordinal()


class Clocked(nn.Module):
    def __init__(self, way: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.way, self.a, self.b = way, nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.way(self.a(x)))


@pytest.mark.parametrize("way", [by_the_hour, by_the_day])
def test_a_clock_is_refused_however_coarse(way: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(CaptureError, match="a clock"):
        fxprune.prune(Clocked(way).eval(), 0.5, example_inputs=torch.randn(2, 6, 8), capture="symbolic")


def timed(h: Tensor) -> Tensor:
    before = time.perf_counter()
    h = h.relu()
    print(f"{time.perf_counter() - before:.3f} s")
    return h


def test_a_clock_that_only_times_is_no_matter() -> None:
    model, x = randomise(Clocked(timed).eval()), torch.randn(2, 6, 8)
    assert fxprune.verify(model, fxprune.prune(model, 0.5, example_inputs=x, capture="symbolic")) < 1e-8
