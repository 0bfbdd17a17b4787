"""Layers that act in place on what is read again, and writes to a tensor's `.data`."""

from __future__ import annotations

import pytest
import torch
from exactness import certified_at
from helpers import CAPTURES, assert_same, randomise
from torch import Tensor, nn

import fxprune
from fxprune.errors import CaptureError

X = torch.randn(2, 6, 8)


class InPlace(nn.Module):
    """One layer acts in place on values that are read again, as an output's sum and by another layer."""

    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(8, 12), nn.Linear(12, 12), nn.Linear(12, 4)
        self.act = act

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        one = self.a(x)
        two = self.act(self.b(self.act(one)))
        part = one[..., 2:] * 1
        return self.out(one + two), self.out(one).sum(1) + part.sum((1, 2))[:, None]


class Data(nn.Module):
    """Fills a fresh tensor through `.data`, in pieces; no gradient passes."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.out = nn.Linear(8, 12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        table = x.new_zeros(x.shape[0], x.shape[1] + 2, 12)
        table.data[:, 2:].copy_(x)
        table.data[:, :1] = 1.0
        return self.out(table)


class ComputedData(Data):
    """Writes to the data of what is computed: values change, gradients pass as if they did not."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        x.data[:, 1:].mul_(2)
        return self.out(x)


class Counted(Data):
    """How many steps depends on values."""

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(int(x.abs().max())):
            x = x + 1
        return self.out(self.a(x[:, : int(x.sum())]))


def assert_right(model: nn.Module, capture: str) -> None:
    model = randomise(model).double().eval()
    whole, pruned = certified_at((0.0, 0.5), model, X.double(), capture)
    assert pruned.get_parameter("a.weight").shape[0] == 6
    for batch in (1, 5):
        x = torch.randn(batch, 6, 8, dtype=torch.float64)
        assert_same(whole(x), model(x), 1e-12)
    for module in (model, whole):
        out = module(X.double())
        (out[0].sum() + out[1].sum()).backward()
    for name, weight in model.named_parameters():
        mine, wanted = whole.get_parameter(name).grad, weight.grad
        assert (mine is None) == (wanted is None), name
        if wanted is not None and mine is not None:
            assert torch.allclose(mine, wanted, rtol=1e-9), name


@pytest.mark.parametrize("act", [nn.SiLU(True), nn.ReLU(True), nn.LeakyReLU(0.1, True)], ids=["a", "b", "c"])
def test_layers_in_place(act: nn.Module, capture: str) -> None:
    assert_right(InPlace(act), capture)


def test_writes_to_data_of_a_fresh_tensor() -> None:
    assert_right(Data(), "symbolic")


def test_writes_to_data_of_a_computed_tensor_are_refused_symbolically() -> None:
    with pytest.raises(CaptureError, match=r"it writes to \.data of a tensor"):
        fxprune.prune(ComputedData().eval(), 0.5, example_inputs=X, capture="symbolic")


@pytest.mark.parametrize("capture", ["auto", *CAPTURES])
def test_code_that_depends_on_values_says_what_to_do(capture: str) -> None:
    with pytest.raises(CaptureError, match="Prune the part before it"):
        fxprune.prune(Counted().eval(), 0.5, example_inputs=X, capture=capture)
