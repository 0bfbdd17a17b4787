"""Tables that a model makes in its first call, behind a flag, a length or an empty buffer, are followed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from helpers import assert_same, randomise
from torch import Tensor, nn

import fxprune

X = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Net(nn.Module):
    """Its hidden channels are scaled by what `scale` keeps."""

    def __init__(self, scale: Callable[[Net, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 3)
        self.scale, self.ready, self.longest = scale, False, 0
        self.register_buffer("places", None, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        return self.b(type(self).scaled(self, h))

    def scaled(self, h: Tensor) -> Tensor:
        return h * self.scale(self, h)


def behind_a_flag(net: Net, h: Tensor) -> Tensor:
    if not net.ready:
        net.table, net.ready = torch.arange(h.shape[-1], dtype=h.dtype).cos(), True
    return net.table


def behind_a_length(net: Net, h: Tensor) -> Tensor:
    if h.shape[1] > net.longest:
        net.longest = h.shape[1]
        net.table = torch.arange(net.longest, dtype=h.dtype)[:, None].cos()
    return net.table[: h.shape[1]]


def several(net: Net, h: Tensor) -> Tensor:
    if not net.ready:
        net.tables, net.ready = [torch.arange(16.0).cos(), torch.arange(16.0).sin()], True
    return net.tables[0] + net.tables[1]


def empty_buffer(net: Net, h: Tensor) -> Tensor:
    if net.places is None:
        net.places = torch.arange(h.shape[1], dtype=h.dtype)[None, :, None]
    return net.places


def late_buffer(net: Net, h: Tensor) -> Tensor:
    if not net.ready:
        net.register_buffer("table", torch.arange(16.0).sin())
        net.ready = True
    return net.table


@pytest.mark.parametrize("form", ["graph", "module"])
@pytest.mark.parametrize("scale", [behind_a_flag, behind_a_length, several, empty_buffer, late_buffer])
def test_a_table_goes_with_what_says_that_it_is_there(
    scale: Callable[[Net, Tensor], Tensor], form: str, capture: str
) -> None:
    if scale is late_buffer and capture == "symbolic":
        capture = "auto"
    model = randomise(Net(scale).eval()).double()
    held = {**vars(model), "_buffers": dict(model._buffers)}
    pruned = fxprune.prune(model, 0.5, example_inputs=X, form=form, capture=capture)
    assert {**vars(model), "_buffers": model._buffers} == held
    x = X.flip(0).repeat(2, 1, 1)[:3]
    assert fxprune.verify(model, pruned, example_inputs=x) < 1e-8
    whole = fxprune.prune(model, 0.0, example_inputs=X, form=form, capture=capture)
    given = x.clone()
    assert_same(whole(given), randomise(Net(scale).eval()).double()(x), 1e-10)
    assert_same(given, x, 0)  # nothing is written to the input
