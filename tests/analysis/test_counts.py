"""Numbers that count what a statistic runs over follow what is kept; other numbers stay.

The reference is the same code with as few channels as were kept, on the kept weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from helpers import randomise
from torch import Tensor, nn

import fxprune

WIDTH = 24
LAST = {"dim": -1, "keepdim": True}


class Between(nn.Module):
    """A function of a hidden layer, between two linear layers."""

    def __init__(self, function: Callable[[Between, Tensor], Tensor], width: int = WIDTH) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(7, width), nn.Linear(width, 3)
        self.gain, self.width, self.function = nn.Parameter(torch.ones(width)), width, function

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(self, self.first(x)) * self.gain)


def _over(x: Tensor, total: Tensor) -> Tensor:
    """Divide by what is one number for each sample."""
    return x / (total.abs() + 0.1)[:, None, None]


def _n(x: Tensor) -> int:
    return x.shape[-1]


def _textbook(x: Tensor, n: int) -> Tensor:
    return x / ((x.pow(2).sum(**LAST) - x.sum(**LAST) ** 2 / n) / (n - 1) + 0.1).sqrt()


# what is written -> as a function of the module and its hidden values [batch, 4 tokens, channels]
FOLLOWED: dict[str, Callable[[Between, Tensor], Tensor]] = {
    # tokens beside channels
    "both sizes": lambda m, x: _over(x, x.sum((1, 2)) / (x.shape[2] * x.shape[1])),
    "a size and a number": lambda m, x: _over(x, x.sum((1, 2)) / (m.width * x.shape[1])),
    "less one": lambda m, x: _over(x, x.square().sum((1, 2)) / (x.shape[1] * x.shape[2] - 1)),
    "one after another": lambda m, x: _over(x, x.sum((1, 2)) / x.shape[1] / x.shape[2]),
    "summed twice": lambda m, x: _over(x, x.sum(2).sum(1) / (x.shape[1] * m.width)),
    "of one sample": lambda m, x: _over(x, x.sum((1, 2)) / x[0].numel()),
    "of all over samples": lambda m, x: _over(x, x.sum((1, 2)) / (x.numel() // x.shape[0])),
    "flat": lambda m, x: _over(x, x.flatten(1).sum(1) / (x.shape[1] * x.shape[2])),
    "rest of a shape": lambda m, x: _over(x, x.sum((1, 2)) / x.shape[1:].numel()),
    # sizes of other tensors
    "a weight's": lambda m, x: x * torch.rsqrt(x.pow(2).sum(**LAST) / m.gain.numel()),
    "a layer's": lambda m, x: x * torch.rsqrt(x.pow(2).sum(**LAST) / m.last.weight.shape[1]),
    "transposed": lambda m, x: x - (x.mT.sum(1) / x.size(-1)).unsqueeze(-1),
    "in groups": lambda m, x: x - (x.unflatten(-1, (4, -1)).sum((-2, -1)) / x.size(-1)).unsqueeze(-1),
    "of a token": lambda m, x: x - x[:, :1].sum(**LAST) / x.shape[-1],
    "of a mean": lambda m, x: x - (x.mean(1).sum(-1) / x.shape[-1])[:, None, None],
    # norms
    "norm": lambda m, x: x / (x.norm(2, dim=-1, keepdim=True) * x.size(-1) ** (-1.0 / 2)),
    "normalize": lambda m, x: F.normalize(x, dim=-1) * m.width**0.5,
    "normalize, gain first": lambda m, x: F.normalize(x, dim=-1) * m.gain * math.sqrt(m.width),
    "normalize, gain scaled": lambda m, x: F.normalize(x, dim=-1) * (m.gain * math.sqrt(m.width)),
    "square of a norm": lambda m, x: x - x.norm(dim=-1, keepdim=True) ** 2 / m.width,
    "norm of what is centred": lambda m, x: (
        x / ((x - x.mean(**LAST)).norm(dim=-1, keepdim=True) / math.sqrt(m.width - 1))
    ),
    # factors, casts, signs
    "half": lambda m, x: x - 0.5 * x.sum(**LAST) / m.width,
    "twice": lambda m, x: x - x.sum(**LAST) * 2 / m.width,
    "cast": lambda m, x: x - x.double().sum(**LAST).to(x.dtype) / m.width,
    "sign": lambda m, x: x + (-x.sum(**LAST)) / x.shape[-1],
    "epsilon": lambda m, x: x - (x.sum(**LAST) + 1e-3) / x.shape[-1],
    "difference": lambda m, x: x - (x.sum(**LAST) - x.relu().sum(**LAST)) / m.width,
    # corrections
    "bessel": lambda m, x: x / (x.var(-1, unbiased=False, keepdim=True) * (_n(x) / (_n(x) - 1))),
    "bessel, written": lambda m, x: x / (x.var(-1, unbiased=False, keepdim=True) * (m.width / (m.width - 1))),
    "epsilon beside the count": lambda m, x: x - x.sum(**LAST) / (x.shape[-1] + 1e-6),
    "at least one": lambda m, x: x - x.sum(**LAST) / max(x.shape[-1], 1),
    "textbook": lambda m, x: _textbook(x, _n(x)),
    "textbook, written": lambda m, x: _textbook(x, m.width),
    # contractions, numbers that are no fractions, quotients
    "einsum": lambda m, x: x * torch.rsqrt(torch.einsum("bnc,bnc->bn", x, x) / m.width).unsqueeze(-1),
    "ones of a layer": lambda m, x: x - F.linear(x, torch.ones(1, m.width, dtype=x.dtype)) / m.width,
    "a matrix of fractions": lambda m, x: x - x @ torch.full((m.width, 1), 1 / m.width, dtype=x.dtype),
    "a full tensor": lambda m, x: x - x.sum(**LAST) / torch.full((1,), m.width, dtype=x.dtype),
    "covariance": lambda m, x: _over(x, (x.mT @ x).sum((-1, -2)) / m.width**2),
    "ones": lambda m, x: x - x @ torch.ones(m.width, 1, dtype=x.dtype) / x.shape[-1],
    "how many": lambda m, x: x * ((x > 0.1).sum(**LAST) / x.shape[-1]),
    "over the sum": lambda m, x: x * m.width / x.abs().sum(**LAST),
    "count over the sum": lambda m, x: x * (x.shape[-1] / x.abs().sum(**LAST)),
    "deviation": lambda m, x: x / (x - x.mean(**LAST)).abs().sum(**LAST) * x.shape[-1],
    "divided first": lambda m, x: x - (x * x / m.width).sum(**LAST),
    # spellings
    "by name": lambda m, x: x - torch.sum(input=x, dim=-1, keepdim=True) / m.width,
    "torch.div": lambda m, x: x - torch.div(x.sum(**LAST), m.width, rounding_mode=None),
    "torch.div by name": lambda m, x: x - torch.div(x.sum(**LAST), other=m.width),
    "a tensor": lambda m, x: x - x.sum(**LAST) / torch.tensor(float(m.width)),
    "dtype": lambda m, x: x - x.sum(-1, dtype=torch.float64, keepdim=True) / m.width,
}


@pytest.mark.parametrize("capture", ["symbolic", "export"])
@pytest.mark.parametrize("written", FOLLOWED)
def test_a_number_counts_what_is_kept(written: str, capture: str) -> None:
    followed(FOLLOWED[written], capture)


def test_a_size_that_a_mean_is_multiplied_by_is_read_of_what_is_kept() -> None:
    """Where it is written, as torch.export writes it, it is a factor as any other."""
    followed(lambda m, x: x - 0.1 * (x.mean(**LAST) * x.shape[-1]), "symbolic")


def followed(function: Callable[[Between, Tensor], Tensor], capture: str) -> None:
    model = randomise(Between(function).eval()).double()
    pruned = fxprune.prune(model, 0.5, example_inputs=torch.randn(2, 4, 7).double(), capture=capture)
    width = pruned.first.out_features
    assert width == WIDTH // 2
    by_hand = Between(function, width).double().eval()
    by_hand.load_state_dict(pruned.state_dict())
    for batch in (1, 3):
        x = torch.randn(batch, 4, 7).double()
        torch.testing.assert_close(pruned(x), by_hand(x), rtol=1e-9, atol=1e-9)
    assert fxprune.verify(model, pruned) < 1e-8


def _attended(scores: Tensor, x: Tensor) -> Tensor:
    return scores.softmax(-1) @ x


def _distances(x: Tensor) -> Tensor:
    return (x[:, :, None] - x.relu()[:, None]).pow(2).sum(-1)


# Numbers that equal a count, or a root of one, and are none: of an axis of WIDTH channels.
STAYING: dict[str, Callable[[Between, Tensor], Tensor]] = {
    "temperature": lambda m, x: (x / 24).tanh(),
    "scale of a sum of products": lambda m, x: x * ((x.relu() * x.sigmoid()).sum(**LAST) * 24**-0.5),
    "scale of attention": lambda m, x: (x @ x.relu().mT * 24**-0.5).softmax(-1) @ x,
    "scale of queries": lambda m, x: (x * 24**-0.5 @ x.relu().mT).softmax(-1) @ x,
    "scale of normed queries": lambda m, x: F.normalize(x, dim=-1) * 24**-0.5,
    "kernel": lambda m, x: x * torch.exp(-x.square().sum(**LAST) / 48),
    "kernel, a root": lambda m, x: x * torch.exp(-x.square().sum(**LAST) * 24**-0.5),
    "attention by distance": lambda m, x: _attended(-_distances(x) * 24**-0.5, x),
    "attention of one with itself": lambda m, x: _attended(x @ x.mT / 24, x),
    "attention by cosine": lambda m, x: _attended(F.normalize(x, dim=-1) @ F.normalize(x, dim=-1).mT * 24, x),
    "attention by cosine, of one": lambda m, x: _attended((n := F.normalize(x, dim=-1)) @ n.mT * 24, x),
    "cosine": lambda m, x: x * ((F.normalize(x, dim=-1) * F.normalize(x.relu(), dim=-1)).sum(**LAST) * 24),
    "gate of a mean": lambda m, x: x * (x.mean(**LAST) * 24**0.5).sigmoid(),
    "gate of a mean, cooler": lambda m, x: x * (x.mean(**LAST) / 24).sigmoid(),
    "gate of a deviation": lambda m, x: x * (x.std(-1, keepdim=True) * 24).tanh(),
    "gate of a variance": lambda m, x: x * (x.var(-1, keepdim=True) * 23).tanh(),
    "a factor of a residual": lambda m, x: x + F.normalize(x, dim=-1) + x.relu() * 24,
}


@pytest.mark.parametrize("capture", ["symbolic", "export"])
@pytest.mark.parametrize("written", STAYING)
def test_a_number_that_counts_nothing_stays(written: str, capture: str) -> None:
    model = randomise(Between(STAYING[written]).eval()).double()
    pruned = fxprune.prune(model, 0.5, example_inputs=torch.randn(2, 4, 7).double(), capture=capture)
    by_hand = Between(STAYING[written], pruned.first.out_features).double().eval()
    by_hand.load_state_dict(pruned.state_dict())
    x = torch.randn(3, 4, 7).double()
    torch.testing.assert_close(pruned(x), by_hand(x), rtol=1e-9, atol=1e-9)
    assert fxprune.verify(model, pruned) < 1e-8


class Fused(nn.Module):
    """Attention by hand, from one projection, whose scale is a power of a head's width."""

    def __init__(self, power: float, read: bool) -> None:
        super().__init__()
        self.qkv, self.out, self.power, self.read = nn.Linear(12, 36), nn.Linear(12, 12), power, read

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 6)).permute(2, 0, 3, 1, 4)
        width = q.shape[-1] if self.read else 6
        return self.out((q @ k.mT * width**self.power).softmax(-1).matmul(v).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("read", [False, True])
@pytest.mark.parametrize("power", [-0.5, -1.0])
def test_the_scale_of_an_attention_is_the_originals(power: float, read: bool) -> None:
    model = randomise(Fused(power, read).eval()).double()
    x = torch.randn(2, 5, 12).double()
    pruned = fxprune.prune(model, 0.5, attention="head_dim", example_inputs=x)
    q, k, v = pruned.qkv(x).unflatten(-1, (3, 2, 3)).permute(2, 0, 3, 1, 4)
    wanted = pruned.out((q @ k.mT * 6**power).softmax(-1).matmul(v).transpose(1, 2).flatten(2))
    torch.testing.assert_close(pruned(x), wanted)
    assert fxprune.verify(model, pruned) < 1e-8


@pytest.mark.parametrize("capture", ["symbolic", "export"])
def test_what_may_count_one_axis_or_another_stays_whole(capture: str) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rows, self.columns = nn.Linear(5, 9), nn.Linear(5, 9)
            self.last = nn.Linear(9, 2)

        def forward(self, x: Tensor) -> Tensor:
            table = self.rows(x)[:, :, :, None] + self.columns(x)[:, :, None]
            return self.last(self.rows(x) - (table.sum((2, 3)) / 9)[..., None])

    model = randomise(Two().eval()).double()
    analysis = fxprune.analyze(model, example_inputs=torch.randn(2, 3, 5).double(), capture=capture)
    why = {str(group.frozen) for group in analysis.groups if group.frozen is not None}
    assert any("counts it, or another axis" in reason for reason in why), why


class Averaged(nn.Module):
    """Averages attention maps over two to four heads, and with their transposes: by halves."""

    def __init__(self, heads: int, width: int = 24) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(width, 3 * 8 * heads), nn.Linear(8 * heads, width)
        self.first, self.last = nn.Linear(7, width), nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        q, k, v = self.qkv(x).unflatten(-1, (3, -1, 8)).permute(2, 0, 3, 1, 4).unbind(0)
        a = (q @ k.mT * 8**-0.5).softmax(-1)
        x = x + self.proj((a @ v).transpose(1, 2).flatten(2))
        return self.last((a.mean(1) + a.mean(1).mT) / 2 @ x + 0.5 * a.mean(1) @ x)


@pytest.mark.parametrize("heads", [2, 3, 4])
def test_halves_of_averages_over_heads_stay(heads: int, capture: str) -> None:
    model, x = randomise(Averaged(heads).eval()).double(), torch.randn(2, 5, 7).double()
    options = {"example_inputs": x, "attention": "heads", "capture": capture}
    pruned = fxprune.prune(model, 0.5, **options)
    left = pruned.proj.in_features // 8
    assert left == (heads + 1) // 2
    by_hand = Averaged(left, pruned.first.out_features).double().eval()
    by_hand.load_state_dict(pruned.state_dict())
    torch.testing.assert_close(pruned(x), by_hand(x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("capture", ["symbolic", "export"])
def test_a_multiple_beside_the_count_is_none_of_it(capture: str) -> None:
    def over(model: Between, x: Tensor) -> Tensor:
        return x - x.sum(**LAST) / 6 / model.width

    model = randomise(Between(over).eval()).double()
    pruned = fxprune.prune(model, 0.5, example_inputs=torch.randn(2, 4, 7).double(), capture=capture)
    by_hand = Between(over, pruned.first.out_features).double().eval()
    by_hand.load_state_dict(pruned.state_dict())
    x = torch.randn(3, 4, 7).double()
    torch.testing.assert_close(pruned(x), by_hand(x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("capture", ["symbolic", "export"])
def test_a_logarithm_of_a_count_is_refused(capture: str) -> None:
    model = Between(lambda m, x: x - (x.exp().sum(**LAST).log() - math.log(m.width)))
    with pytest.raises(fxprune.errors.NothingPrunableError, match="logarithm of its size"):
        fxprune.prune(randomise(model), 0.5, example_inputs=torch.randn(2, 4, 7), capture=capture)
