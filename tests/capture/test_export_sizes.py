"""torch.export follows the sizes that the code lets it follow; others are refused, never computed wrongly."""

from __future__ import annotations

import pytest
import torch
from exactness import certified_at
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


class Windows(Scaled):
    """Computes the batch size from how many windows there are."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).permute(0, 2, 3, 1)
        b, h, w, c = x.shape
        y = x.view(b, h // 4, 4, w // 4, 4, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, 16, c)
        y = y.relu() - y.mean(1, keepdim=True)
        back = int(y.shape[0] / (h * w / 4 / 4))
        y = y.view(back, h // 4, w // 4, 4, 4, -1).permute(0, 1, 3, 2, 4, 5).reshape(back, h, w, -1)
        return self.head(y.permute(0, 3, 1, 2)).mean((2, 3))


class Padded(Scaled):
    def forward(self, x: Tensor) -> Tensor:
        missing = (4 - x.shape[-1] % 4) % 4
        return self.head(nn.functional.pad(self.stem(x), (0, missing)).relu()).mean((2, 3))


class ByHeight(Scaled):
    """Another branch for large images."""

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        return out * 2 if x.shape[2] > 16 else out


SHAPES = [(2, 3, 16, 24), (2, 3, 24, 16), (1, 3, 32, 32), (1, 3, 8, 16), (5, 3, 12, 12)]


@pytest.mark.parametrize("kind", [Scaled, Windows, Padded])
@pytest.mark.parametrize("given", [1, 2])
def test_another_size_is_followed(kind: type[nn.Module], given: int) -> None:
    model = randomise(kind()).double().eval()
    example = torch.zeros(given, 3, 16, 16, dtype=torch.float64)
    whole, _ = certified_at((0.0, 0.5), model, example, "export")
    for shape in SHAPES:
        x = torch.randn(shape, dtype=torch.float64)
        assert torch.allclose(whole(x), model(x), rtol=1e-9)


@pytest.mark.parametrize("kind", [ByHeight, Asserted])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_size_that_takes_another_way_is_refused(kind: type[nn.Module], shape: tuple[int, ...]) -> None:
    model = randomise(kind()).double().eval()
    example = torch.zeros(2, 3, 16, 16, dtype=torch.float64)
    whole = fxprune.prune(model, 0.0, example_inputs=example, capture="export")
    x = torch.randn(shape, dtype=torch.float64)
    if (shape[2] > 16) if kind is ByHeight else (shape[3] != 16):
        with pytest.raises(InputSizeError, match=r"dimension \d of x"):
            whole(x)
    else:
        assert torch.allclose(whole(x), model(x), rtol=1e-9)


def test_every_input_is_followed() -> None:
    x, more, weight = torch.zeros(2, 3, 16, 16), torch.zeros(2, 6, 4), torch.ones(2, 7)
    model = randomise(TwoInputs().eval())
    whole = fxprune.prune(
        model, 0.0, example_inputs=(x, more), example_kwargs={"weight": weight}, capture="export"
    )
    x, more, weight = torch.randn(3, 3, 12, 16), torch.randn(3, 9, 5), torch.randn(3, 4)
    assert torch.allclose(whole(x, more, weight=weight), model(x, more, weight=weight), atol=1e-5)


@pytest.mark.parametrize("ask", [1, 2])
def test_a_branch_for_one_sample_is_not_taken_for_granted(ask: int) -> None:
    """torch.export takes sizes of one for a case apart, and says nothing of it."""

    class Asks(Scaled):
        def forward(self, x: Tensor) -> Tensor:
            out = super().forward(x)
            return out + 1 if x.shape[0] == ask else out

    model = randomise(Asks()).eval()
    whole = fxprune.prune(model, 0.0, example_inputs=torch.zeros(3, 3, 16, 16), capture="export")
    for batch in (1, 2, 3, 5):
        x = torch.randn(batch, 3, 16, 16)
        if batch == ask:
            with pytest.raises(InputSizeError):
                whole(x)
        else:
            assert torch.allclose(whole(x), model(x), atol=1e-5)


def test_the_sizes_that_it_was_captured_for_are_exact() -> None:
    model = randomise(Scaled().eval())
    pruned = fxprune.prune(model, 0.5, example_inputs=torch.zeros(2, 3, 12, 20), capture="export")
    assert fxprune.verify(model, pruned) < 1e-8
    assert pruned(torch.zeros(3, 3, 12, 20)).shape == (3, 5)
