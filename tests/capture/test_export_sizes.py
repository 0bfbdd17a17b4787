"""torch.export makes numbers of an input's sizes: another size is refused, never computed wrongly."""

from __future__ import annotations

import pytest
import torch
from helpers import randomise
from torch import Tensor, nn

import fxprune
from fxprune.errors import InputSizeError


class Scaled(nn.Module):
    """A factor of the height, in the code."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stem(x).relu() / x.shape[2] ** 0.5).mean((2, 3))


class Asserted(Scaled):
    """Refuses other sizes itself."""

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[-1] == 16, "16 pixels only"
        return super().forward(x)


class TwoInputs(Scaled):
    def forward(self, x: Tensor, more: Tensor | None = None, *, weight: Tensor | None = None) -> Tensor:
        out = super().forward(x)
        out = out if more is None else out + more.mean((1, 2))[:, None] / more.shape[1]
        return out if weight is None else out * weight.mean(-1, keepdim=True)


def pruned_from(model: nn.Module, *args: Tensor, **kwargs: Tensor) -> nn.Module:
    return fxprune.prune(
        randomise(model.eval()), 0.5, example_inputs=args, example_kwargs=kwargs, capture="export"
    )


@pytest.mark.parametrize("kind", [Scaled, Asserted])
@pytest.mark.parametrize("shape", [(2, 3, 16, 24), (2, 3, 24, 16), (1, 3, 32, 32)])
def test_another_size_is_refused(kind: type[nn.Module], shape: tuple[int, ...]) -> None:
    pruned = pruned_from(kind(), torch.zeros(2, 3, 16, 16))
    for batch in (1, 2, 5):
        assert pruned(torch.zeros(batch, 3, 16, 16)).shape == (batch, 5)
    if kind is Scaled or shape[-1] != 16:
        with pytest.raises(InputSizeError, match=r"of x is \d+.* for 16"):
            pruned(torch.zeros(shape))


def test_every_input_is_watched() -> None:
    x, more, weight = torch.zeros(2, 3, 16, 16), torch.zeros(2, 6, 4), torch.ones(2, 7)
    pruned = pruned_from(TwoInputs(), x, more, weight=weight)
    assert pruned(x, more, weight=weight).shape == (2, 5)
    with pytest.raises(InputSizeError, match="dimension 1 of more is 9"):
        pruned(x, torch.zeros(2, 9, 4), weight=weight)
    with pytest.raises(InputSizeError, match="dimension 1 of weight is 3"):
        pruned(x, more, weight=torch.ones(2, 3))


def test_the_sizes_that_it_was_captured_for_are_exact() -> None:
    model = randomise(Scaled().eval())
    pruned = fxprune.prune(model, 0.5, example_inputs=torch.zeros(2, 3, 12, 20), capture="export")
    assert fxprune.verify(model, pruned) < 1e-8
    assert pruned(torch.zeros(3, 3, 12, 20)).shape == (3, 5)
