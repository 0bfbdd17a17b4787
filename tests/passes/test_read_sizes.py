"""Sizes that code reads from a tensor beside its channels stay sizes of the input, whatever shrinks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from exactness import assert_exact
from helpers import randomise
from torch import Tensor, nn

import fxprune


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.hidden, self.head = nn.Linear(8, 12), nn.Linear(12, 16), nn.Linear(16, 5)
        self.places = nn.Parameter(torch.randn(9, 12))
        self.register_buffer("mask", torch.randn(9, 9).softmax(-1).tril())

    def rest(self, x: Tensor) -> Tensor:
        return self.head(self.hidden(x).relu()).mean(1)


class MaskOfSlicedPlaces(Base):
    """A token is appended, places are shifted; then the shape of all the others is read whole."""

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.stem(x), self.places[:1].expand(x.shape[0], -1, -1)], 1)
        x = x + self.places[: x.shape[1]]
        x = x + torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], 1)
        pooled, x = x[:, -1], x[:, :-1]
        batch, length, width = x.shape
        mask = self.mask[:length, :length]
        return self.rest((mask @ x).reshape(batch, length, width)) + self.head(self.hidden(pooled))


class MaskOfOnes(Base):
    """A mask that the code makes as long as the input is, and whose shape it reads."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        alive = torch.ones(x.shape[:2], dtype=x.dtype, device=x.device)
        both = alive[..., None] * x
        batch, length, width = both.shape
        return self.rest(both.view(batch, length, width) + self.places.new_ones(length, 1))


class PlacesAndTokens(Base):
    """A class token before the places; the length is read from `size()`."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.cat([self.places[:1].expand(len(x), 1, -1), x + self.places[1 : x.size(1) + 1]], 1)
        size = x.size()
        mask = self.mask[: size[1], : size[1]]
        return self.rest(mask @ x.reshape(size[0], size[1], size[2]))


@pytest.mark.parametrize("kind", [MaskOfSlicedPlaces, MaskOfOnes, PlacesAndTokens])
def test_other_lengths_of_a_pruned_model(kind: type[Base], capture: Any) -> None:
    model = randomise(kind().eval())
    pruned = fxprune.prune(model, 0.5, example_inputs=torch.randn(2, 7, 8), capture=capture)
    assert_exact(model, pruned)
    assert pruned.hidden.in_features == 6
    for batch, length in ((1, 7), (2, 6), (5, 3)):
        x = torch.randn(batch, length, 8)
        assert fxprune.verify(model, pruned, example_inputs=x) < 1e-8


def by_stride(x: Tensor) -> Tensor:
    return x * x.stride(1)


def by_offset(x: Tensor) -> Tensor:
    return x * (1 + x[:, 1:].storage_offset())


def by_bytes(x: Tensor) -> Tensor:
    return x * x[0].nbytes


class Laid(Base):
    def __init__(self, layout: Any) -> None:
        super().__init__()
        self.layout = layout

    def forward(self, x: Tensor) -> Tensor:
        return self.rest(self.layout(self.stem(x)))


@pytest.mark.parametrize("layout", [by_stride, by_offset, by_bytes])
def test_a_layout_that_code_reads_stays(layout: Any, capture: Any) -> None:
    model, x = randomise(Laid(layout).eval()), torch.randn(2, 7, 8)
    pruned = fxprune.prune(model, 0.5, example_inputs=x, capture=capture)
    assert_exact(model, pruned)
    assert pruned.hidden.out_features == 8
    whole = fxprune.prune(model, 0.0, example_inputs=x, capture=capture)
    torch.testing.assert_close(whole(x), model(x))
