"""One run gathers what each reader reads, token by token, the derivatives by it, covariances, and masks'."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import randomise
from torch import Tensor, nn
from tqdm import tqdm

import fxprune
from fxprune.choose.importance.along import along
from fxprune.choose.importance.covariances import spreads_of
from fxprune.choose.importance.gathered import Moments, gathered
from fxprune.choose.importance.held_out import split_data
from fxprune.choose.importance.kl import kl
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


class Attention(TwoReaders):
    """The same behind attention of two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(6, 24), nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        mixed = (q @ k.transpose(-2, -1)).softmax(-1) @ v
        x = x + self.proj(mixed.transpose(1, 2).flatten(2))
        x = x + self.down(self.up(x).relu())
        return self.head(x[:, 0])


def collected(model: nn.Module, role: str) -> list[Moments]:
    analysis = fxprune.analyze(model, example_inputs=BATCHES[0])
    group = next(g for g in analysis.prunable if g.role == role)
    moments = gathered(analysis, [group], (), BATCHES, draws=1, progress=False).moments
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
        prediction = predictions_of(model(x), len(x), None)
        prediction.drawn(next(prediction.signs(1, generator))).backward()
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
    expected = Moments((x * counts).mT @ x, (x * counts).sum(0), g.mT @ g / 5, 5)
    assert found.derivatives == 5
    for name in ("vectors", "means", "covectors"):
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


def test_the_same_run_gathers_what_runs_of_their_own_would() -> None:
    """Covariances as of `spreads_of`, derivatives by masks as of `kl`."""
    torch.manual_seed(0)
    model = randomise(Attention())
    analysis = fxprune.analyze(model, example_inputs=BATCHES[0])
    hidden = [g for g in analysis.prunable if g.role == "hidden"]
    heads = [g for g in analysis.groups if g.role == "heads"]
    stream = [g for g in analysis.prunable if g.role == "embed"]
    assert hidden and heads and stream
    found = gathered(analysis, stream, [*hidden, *heads], BATCHES, draws=8, progress=False)
    batches = split_data(BATCHES, analysis, "kl").all

    bar = tqdm(disable=True)
    spreads = spreads_of(analysis, hidden, batches, found.derivatives.lengths, bar)
    assert found.spreads.keys() == spreads.keys()
    for key, spread in spreads.items():
        torch.testing.assert_close(found.spreads[key], spread)

    assert [*found.masked] == heads
    masked = kl(analysis, heads, [batch.args[0] for batch in batches], draws=8, progress=False)
    assert all(np.allclose(found.masked[g], masked[g], rtol=1e-4) for g in heads)
    whole = gathered(analysis, stream, (), BATCHES, draws=8, progress=False).moments
    for key, moments in whole.items():
        torch.testing.assert_close(found.moments[key].covectors, moments.covectors, rtol=1e-4, atol=1e-7)
