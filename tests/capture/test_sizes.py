"""Sizes and ranks that a model's code computes with: followed, so that the result takes every size."""

from __future__ import annotations

import math
from collections.abc import Callable
from math import sqrt

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from einops import rearrange, reduce, repeat
from einops.layers.torch import Rearrange
from helpers import Body, randomise
from torch import Tensor, nn

import fxprune
from fxprune.errors import InputSizeError


def batch_from_windows(x: Tensor) -> Tensor:
    """The batch is computed from the number of windows, through floats."""
    _, c, h, w = x.shape
    y = rearrange(x, "b c (h y) (w x) -> (b h w) (y x) c", y=4, x=4)
    y = y - y.amax(1, keepdim=True)
    b = int(y.shape[0] / (h * w / 4 / 4))
    y = y.view(b, h // 4, w // 4, 4, 4, c).transpose(2, 3).reshape(b, h, w, c)
    return y.permute(0, 3, 1, 2)


def side_from_root(x: Tensor) -> Tensor:
    tokens = x.flatten(2).transpose(1, 2)
    side = int(math.sqrt(tokens.shape[1]))
    return tokens.transpose(1, 2).reshape(len(tokens), -1, side, side)


def side_from_power(x: Tensor) -> Tensor:
    side = round((x.shape[2] * x.shape[3]) ** 0.5)
    return x.flatten(2).unflatten(2, (side, side))


def side_from_imported_root(x: Tensor) -> Tensor:
    return x.flatten(2).unflatten(2, (int(sqrt(x[0, 0].numel())), -1))


def side_from_numpy(x: Tensor) -> Tensor:
    return x.flatten(2).unflatten(2, (-1, int(np.sqrt(math.prod(x.shape[2:])))))


def scaled_by_sizes(x: Tensor) -> Tensor:
    return x / x.shape[-1] ** 0.5 + float(x.size(2)) * math.log(x.size(3)) + max(x.shape[2], 7) - min(x.shape)


def made_of_the_batch(x: Tensor) -> Tensor:
    b, n = len(x), len(x.shape)
    mask = torch.zeros(b, 1, *x.shape[2:])
    ramp = torch.arange(b).view(b, *(1,) * (n - 1)) + torch.full((b, 1, 1, 1), 0.5)
    grid = torch.linspace(0, 1, x.shape[-1]) + torch.eye(x.shape[2], x.shape[3])
    assert isinstance(b, int)
    return x * grid + mask + 0 * ramp + torch.tensor([float(x.shape[2]), 1.0]).sum()


def rank_as_a_key(x: Tensor) -> Tensor:
    dims = {3: (1,), 4: (2, 3)}[x.ndim]
    other = [i for i in range(len(x.size())) if i > 1]
    return x - x.mean(dims, keepdim=True) + x.amax(tuple(range(2, x.dim())), keepdim=True) + len(other)


def kept_sizes(x: Tensor) -> Tensor:
    batch, rest = x.shape[:1], x.shape[1:]
    halves, odd = divmod(rest[-1], 2)
    y = x.flatten(1).reshape(*batch, *rest) + rest.numel() + math.prod(rest[1:])
    return y[..., : halves + odd] + math.ceil(rest[-1] / 4) + math.floor(rest[-1] / 4)


def by_einops(x: Tensor) -> Tensor:
    pooled = reduce(x, "b c h w -> b c", "mean")
    grid = repeat(pooled, "b c -> b c h w", h=x.shape[2], w=x.shape[3])
    tokens = Rearrange("b c h w -> b (h w) c")(x - grid)
    return rearrange(tokens.softmax(1), "b (h w) c -> b c h w", h=x.shape[2])


KINDS = [batch_from_windows, side_from_root, side_from_power, side_from_imported_root, side_from_numpy]
KINDS += [scaled_by_sizes, made_of_the_batch, rank_as_a_key, kept_sizes, by_einops]


def built(between: Callable[[Tensor], Tensor]) -> nn.Module:
    model = Body(between).eval()
    randomise(model)
    return model


@pytest.mark.parametrize("example", [1, 2])
@pytest.mark.parametrize("between", KINDS, ids=lambda f: f.__name__)
def test_every_batch_and_size_is_followed(between: Callable[[Tensor], Tensor], example: int) -> None:
    model = built(between).double()
    x = torch.randn(example, 3, 16, 16).double()
    whole = fxprune.prune(model, 0.0, example_inputs=x, capture="symbolic")
    half = fxprune.prune(model, 0.5, example_inputs=x, capture="symbolic")
    assert fxprune.verify(model, half, example_inputs=torch.randn(3, 3, 16, 16).double()) < 1e-12
    for batch, size in ((1, 16), (2, 24), (3, 32), (5, 8)):
        y = torch.randn(batch, 3, size, size).double()
        torch.testing.assert_close(whole(y), model(y))
        assert fxprune.verify(model, half, example_inputs=y) < 1e-12


def test_a_training_step_gives_every_parameter_a_gradient() -> None:
    for between in KINDS:
        model = built(between)
        half = fxprune.prune(model, 0.5, example_inputs=torch.zeros(2, 3, 16, 16)).train()
        half(torch.randn(3, 3, 24, 24)).square().sum().backward()
        assert all(p.grad is not None for p in half.parameters()), between


class Pooled(nn.Module):
    """Images or rows of tokens, told apart by the rank."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim == 4:
            x = x.flatten(1, 2)
        return self.b(F.gelu(self.a(x)).mean(1))


def test_another_rank_is_refused() -> None:
    model = Pooled()
    images = fxprune.prune(model, 0.5, example_inputs=torch.zeros(2, 5, 5, 8), capture="symbolic")
    assert images(torch.zeros(3, 4, 6, 8)).shape == (3, 3)
    with pytest.raises(InputSizeError, match=r"test_sizes.py:\d+"):
        images(torch.zeros(2, 25, 8))


class Held(nn.Module):
    """A function that was made with a layer, and one that makes a layer when it is called."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.drop = nn.Linear(8, 16), nn.Linear(16, 3), nn.Dropout(0.5)
        a, drop = self.a, self.drop
        self.apply_a = lambda x: drop(a(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.b(nn.GELU()(Rearrange("b (n m) c -> b n m c", m=2)(self.apply_a(x))).mean((1, 2)))


def test_layers_that_functions_hold_or_make_are_followed() -> None:
    model, x = Held(), torch.randn(3, 6, 8)
    half = fxprune.prune(model.eval(), 0.5, example_inputs=x, capture="symbolic")
    assert half.a.weight.shape == (8, 8)
    assert fxprune.verify(model, half, example_inputs=x) < 1e-6
    half.train()
    assert not torch.equal(half(x), half(x))
