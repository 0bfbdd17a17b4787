"""Modules that code moves while it runs, and loops over the rows of a tensor."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from exactness import assert_exact
from helpers import CAPTURES, randomise
from torch import Tensor, nn

import fxprune
from fxprune.errors import CaptureError, InputSizeError


class Experts(nn.Module):
    """Mixes what three experts make of the input; `run` says how each is called."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(8, 12)
        self.experts = nn.ModuleList(nn.Linear(12, 12) for _ in range(3))
        self.register_buffer("here", torch.ones(1), persistent=False)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(torch.stack([y.relu() for y in self.run(x)]).mean(0))

    def run(self, x: Tensor) -> Iterator[Tensor]:
        for expert in self.experts:
            yield expert.to(self.here.device)(x)


class ToKeyword(Experts):
    def run(self, x: Tensor) -> Iterator[Tensor]:
        for expert in self.experts:
            yield expert.to(device=x.device, dtype=x.dtype)(x)


class AsideAndBack(Experts):
    """Lays those aside that do not run."""

    def run(self, x: Tensor) -> Iterator[Tensor]:
        for i, expert in enumerate(self.experts):
            for other in self.experts:
                other.to(x.device if other is self.experts[i] else "cpu")
            yield expert(x)


class RowEach(Experts):
    """Gives each expert its row of a tensor, whose number is the model's own."""

    def run(self, x: Tensor) -> Iterator[Tensor]:
        rows = x[None] * torch.arange(1.0, 4.0, dtype=x.dtype)[:, None, None]
        return (expert(row) for expert, row in zip(self.experts, rows, strict=True))


@pytest.mark.parametrize("capture", CAPTURES)
@pytest.mark.parametrize("kind", [Experts, ToKeyword, AsideAndBack, RowEach])
def test_modules_stay_where_they_are(kind: type[Experts], capture: Any) -> None:
    model = randomise(kind().eval())
    weights = {name: p.data_ptr() for name, p in model.named_parameters()}
    pruned = fxprune.prune(model, 0.5, example_inputs=torch.randn(2, 8), capture=capture)
    assert_exact(model, pruned, 1, 2, 5)
    assert pruned.stem.out_features == 6
    assert weights == {name: p.data_ptr() for name, p in model.named_parameters()}
    assert nn.Module.to is nn.Linear.to and not hasattr(nn.Module.to, "__wrapped__")
    assert model.to(torch.float64).stem.weight.dtype is torch.float64  # nothing stays replaced


class ToHalf(Experts):
    def run(self, x: Tensor) -> Iterator[Tensor]:
        for expert in self.experts:
            yield expert.to(torch.float64)(x.double()).to(x.dtype)


def test_converted_weights_are_refused_with_the_cure() -> None:
    model = randomise(ToHalf().eval())
    with pytest.raises(CaptureError, match=r"converts the weights of a Linear to torch\.float64.*before"):
        fxprune.prune(model, 0.5, example_inputs=torch.randn(2, 8))


class OverTokens(Experts):
    """Runs over the places of a sequence, one after the other."""

    def forward(self, x: Tensor) -> Tensor:
        state = torch.zeros_like(self.stem(x[:, 0]))
        for token in x.transpose(0, 1):
            state = torch.tanh(self.stem(token) + self.experts[0](state))
        return self.head(state)


class OverSamples(Experts):
    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.head(self.stem(sample).relu().mean(0)) for sample in x])


@pytest.mark.parametrize("capture", CAPTURES)
@pytest.mark.parametrize("kind", [OverTokens, OverSamples])
def test_a_loop_over_rows_is_exact_or_refused(kind: type[Experts], capture: Any) -> None:
    model = randomise(kind().eval())
    example = torch.randn(3, 4, 8)
    try:
        whole = fxprune.prune(model, 0.0, example_inputs=example, capture=capture)
    except CaptureError as error:
        assert (kind, capture) == (OverSamples, "symbolic") and "batch size" in str(error)
        return
    for shape in ((3, 4, 8), (1, 4, 8), (5, 4, 8), (3, 6, 8), (3, 2, 8)):
        x = torch.randn(shape)
        try:
            torch.testing.assert_close(whole(x), model(x))
            refused = False
        except InputSizeError as error:
            refused = True
            assert "example_inputs" in str(error)
        assert refused == (shape[1] != 4 if kind is OverTokens else shape[0] != 3)
