"""Moments are those of what each reader reads, token by token, and of the derivative by it alone."""

from __future__ import annotations

import pytest
import torch
from helpers import randomise
from torch import Tensor, nn

import fxprune
from fxprune.choose.basis.moments import Moments, moments_of
from fxprune.choose.importance.along import along
from fxprune.choose.importance.predictions import predictions_of
from fxprune.rules.axes import Atom, Product, Sum, batch

BATCHES = [torch.randn(3, 5, 8), torch.randn(2, 5, 8)]


class TwoReaders(nn.Module):
    """A stream that is read twice: by a branch and by the head, which looks at the first token alone."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.up, self.down = nn.Linear(8, 6), nn.Linear(6, 12), nn.Linear(12, 6)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.down(self.up(x).relu())
        return self.head(x[:, 0])


def collected(model: nn.Module, role: str) -> list[Moments]:
    analysis = fxprune.analyze(model, example_inputs=BATCHES[0])
    group = next(g for g in analysis.prunable if g.role == role)
    moments, _ = moments_of(analysis, [group], BATCHES, draws=1, progress=False)
    return list(moments.values())


def read_by(layer: nn.Module, model: nn.Module) -> tuple[Tensor, Tensor]:
    """Return what a layer reads and the derivatives by it, sample by sample as the moments draw them."""
    copies: list[Tensor] = []

    def copied(_: nn.Module, given: tuple[Tensor]) -> Tensor:
        copies.append(given[0].clone())
        copies[-1].retain_grad()
        return copies[-1]

    hook = layer.register_forward_pre_hook(copied)
    generator = torch.Generator().manual_seed(0)
    for x in BATCHES:
        predictions_of(model(x), len(x), None).drawn(generator).backward()
    hook.remove()
    slopes = [c.grad.reshape(-1, c.shape[-1]) for c in copies if c.grad is not None]
    return torch.cat([c.detach().reshape(-1, c.shape[-1]) for c in copies]), torch.cat(slopes)


@pytest.mark.parametrize(
    ("role", "place", "reader"), [("embed", 0, "up"), ("embed", 1, "head"), ("hidden", 0, "down")]
)
def test_each_reader_has_its_own_moments(role: str, place: int, reader: str) -> None:
    model = randomise(TwoReaders())
    found = collected(model, role)[place]
    x, g = read_by(model.get_submodule(reader), model)
    counts = g.norm(dim=1, keepdim=True) / g.norm(dim=1).sum()
    expected = Moments((x * counts).mT @ x, g.mT @ g / 5, 5)
    assert found.derivatives == 5
    for name in ("vectors", "covectors"):
        torch.testing.assert_close(
            getattr(found, name), getattr(expected, name).double(), rtol=1e-4, atol=1e-6
        )


@pytest.mark.parametrize("size", [1, 2, 5])
def test_a_value_is_laid_out_along_an_atom(size: int) -> None:
    b, heads, dim, other = batch(2), Atom(3), Atom(4), Atom(7)
    value = torch.randn(size, 5, 7 + 12)
    axes = (b, Atom(5), Sum((other, Product((heads, dim)))))
    by_head = along(value, axes, dim, heads, size)
    assert torch.equal(by_head, value[..., 7:].reshape(size, 5, 3, 4).permute(2, 0, 1, 3).reshape(3, -1, 4))
    flat = along(value, axes, dim, None, size)
    assert torch.equal(flat, value[..., 7:].reshape(-1, 4))
    assert torch.equal(along(value, axes, other, None, size), value[..., :7].reshape(-1, 7))
