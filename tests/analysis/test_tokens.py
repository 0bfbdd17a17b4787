"""Tokens stay whole, learned ones too; what lies along a parameter and is a channel still shrinks."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from exactness import certified_at
from helpers import by_capture, randomise
from torch import Tensor, nn

import fxprune

N, C = 6, 16  # learned tokens and their width
Read = Callable[["Reader", Tensor, Tensor], Tensor]


class Reader(nn.Module):
    """Learned queries read an image's patches; `finish` makes an answer of what they read."""

    def __init__(self, attend: Read, finish: Read) -> None:
        super().__init__()
        self.attend, self.finish = attend, finish
        self.patches = nn.Conv2d(3, C, 8, 8)
        self.queries = nn.Parameter(torch.randn(1, N, C))
        self.q, self.k, self.v, self.o = (nn.Linear(C, C) for _ in range(4))
        self.norm, self.head, self.score = nn.LayerNorm(C), nn.Linear(C, 5), nn.Linear(C, 1)
        self.flat, self.over = nn.Linear(N * C, 5), nn.Linear(N, 5)
        self.table = nn.Parameter(torch.randn(1, N, C))
        self.each = nn.Parameter(torch.randn(N, C, 5))
        self.mix = nn.Sequential(nn.Linear(N, 24), nn.GELU(), nn.Linear(24, N))
        self.pool = nn.Parameter(torch.randn(1, 2, C))

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        latents = self.queries.expand(x.shape[0], -1, -1)
        return self.finish(self, latents + self.o(self.attend(self, latents, x)), x)


def fused(m: Reader, latents: Tensor, x: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(m.q(latents), m.k(x), m.v(x))


def by_hand(m: Reader, latents: Tensor, x: Tensor) -> Tensor:
    return (m.q(latents) @ m.k(x).transpose(1, 2)).softmax(-1) @ m.v(x)


def keys_first(m: Reader, latents: Tensor, x: Tensor) -> Tensor:
    """The weights that queries have for patches as a layer's would stand: on the right."""
    scores = (m.k(x) @ m.q(m.queries)[0].T).softmax(1)
    return scores.transpose(1, 2) @ m.v(x)


def no_projection(m: Reader, latents: Tensor, x: Tensor) -> Tensor:
    scores = torch.einsum("bnc,qc->bqn", x, m.queries[0]).softmax(-1)
    return torch.einsum("bqn,bnc->bqc", scores, x)


def raw_on_the_left(m: Reader, latents: Tensor, x: Tensor) -> Tensor:
    return (m.queries @ x.transpose(1, 2)).softmax(-1) @ x


def linear_attention(m: Reader, latents: Tensor, x: Tensor) -> Tensor:
    return m.q(latents).sigmoid() @ (m.k(x).softmax(1).transpose(1, 2) @ m.v(x))


ATTENDS = [fused, by_hand, keys_first, no_projection, raw_on_the_left, linear_attention]


def mean(m: Reader, y: Tensor, x: Tensor) -> Tensor:
    return m.head(m.norm(y).mean(1))


def total(m: Reader, y: Tensor, x: Tensor) -> Tensor:
    return m.head(y).sum(1)


def flattened(m: Reader, y: Tensor, x: Tensor) -> Tensor:
    return m.flat(y.flatten(1))


def one_layer_per_token(m: Reader, y: Tensor, x: Tensor) -> Tensor:
    return torch.einsum("bnc,nco->bno", y, m.each).mean(1)


def scored(m: Reader, y: Tensor, x: Tensor) -> Tensor:
    """A weight contracts what each token scored."""
    return m.over(m.score(y).squeeze(-1))


def mixed(m: Reader, y: Tensor, x: Tensor) -> Tensor:
    """A weight contracts tokens: those of an MLP mixer."""
    return m.head((y + m.mix(m.norm(y).transpose(1, 2)).transpose(1, 2)).mean(1))


def placed(m: Reader, y: Tensor, x: Tensor) -> Tensor:
    return m.head((y + m.table).relu().mean(1))


def pooled(m: Reader, y: Tensor, x: Tensor) -> Tensor:
    """Other learned queries read them, and are averaged."""
    y = F.scaled_dot_product_attention(m.q(m.pool).expand(y.shape[0], -1, -1), m.k(y), m.v(y))
    return m.head(y.mean(1))


def joined(m: Reader, y: Tensor, x: Tensor) -> Tensor:
    """Registers beside patches."""
    return m.head(torch.cat([y, m.table.expand(y.shape[0], -1, -1), x], 1).relu().mean(1))


def read_again(m: Reader, y: Tensor, x: Tensor) -> Tensor:
    """The patches read the latents back."""
    return m.head((x + by_hand(m, x, y)).mean(1))


FINISHES = [mean, total, flattened, one_layer_per_token, scored, mixed, placed, pooled, joined, read_again]
PAIRS = [(a, mean) for a in ATTENDS] + [(a, f) for a in (fused, by_hand) for f in FINISHES[1:]]


@pytest.mark.parametrize(
    ("attend", "finish", "capture"), by_capture(PAIRS, 3), ids=lambda f: getattr(f, "__name__", f)
)
def test_learned_tokens_stay_whole(attend: Read, finish: Read, capture: str) -> None:
    model = randomise(Reader(attend, finish)).eval()
    image = torch.randn(2, 3, 32, 32)
    (pruned,) = certified_at((0.5,), model, image, capture)
    assert pruned.queries.shape == (1, N, C // 2)
    got = {name: tuple(p.shape) for name, p in pruned.named_parameters()}
    tokens = {"table": (1, N, C // 2), "pool": (1, 2, C // 2), "each": (N, C // 2, 5)}
    assert all(got[name] == shape for name, shape in tokens.items() if name in got)
    assert got.get("mix.0.weight", (12, N)) == (12, N)  # what mixes tokens has a hidden width of its own
    assert got.get("flat.weight", (5, N * C // 2)) == (5, N * C // 2)


def test_it_says_why(capture: str) -> None:
    image = torch.randn(2, 3, 32, 32)
    found = fxprune.analyze(Reader(fused, mean), example_inputs=image, capture=capture)
    (group,) = found.group_of("queries[1]")
    assert "tokens" in str(group.frozen)


# ---------------------------------------------------------------- channels that lie along parameters


class Scaled(nn.Module):
    """Layer scale, a gate, a bias by hand and per-head temperatures: along channels, none contracts."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(3, C), nn.Linear(C, 5)
        self.qkv, self.o = nn.Linear(C, 3 * C), nn.Linear(C, C)
        self.scale, self.gate, self.bias = (nn.Parameter(torch.randn(C)) for _ in range(3))
        self.heat = nn.Parameter(torch.rand(4, 1, 1))
        self.gates = nn.Parameter(torch.randn(4, 1, 4))
        self.place = nn.Parameter(torch.randn(4, 7, 7))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        q, k, v = self.qkv(x).unflatten(-1, (3, 4, 4)).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-2, -1) * self.heat + self.place
        y = (scores.softmax(-1) @ v * self.gates).transpose(1, 2).flatten(2)
        return self.head((x + self.scale * self.o(y) * self.gate.sigmoid() + self.bias).mean(1))


class LowRank(nn.Module):
    """An adapter of two thin matrices, as weights and as a computed weight; a standardised weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(3, C), nn.Linear(C, 5)
        self.down, self.up = nn.Parameter(torch.randn(8, C)), nn.Parameter(torch.randn(C, 8))
        self.base = nn.Parameter(torch.randn(C, C))
        self.raw = nn.Parameter(torch.randn(12, C))
        self.out = nn.Parameter(torch.randn(C, 12))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = x + F.linear(x, self.base + self.up @ self.down).relu()
        weight = (self.raw - self.raw.mean(1, keepdim=True)) * 2
        return self.head(x + F.linear(F.linear(x, weight).relu(), self.out))


class Stacked(nn.Module):
    """Per-head weights of one tensor, in products written by hand."""

    def __init__(self, equation: str) -> None:
        super().__init__()
        self.equation = equation
        self.embed, self.head = nn.Linear(3, C), nn.Linear(C, 5)
        self.wq, self.wk, self.wv = (nn.Parameter(torch.randn(4, C, 6)) for _ in range(3))
        self.wo = nn.Parameter(torch.randn(4, 6, C))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        left = self.equation.startswith("hcd")
        q, k, v = (
            torch.einsum(self.equation, *((w, x) if left else (x, w))) for w in (self.wq, self.wk, self.wv)
        )
        y = (q @ k.transpose(-2, -1)).softmax(-1) @ v
        return self.head((x + torch.einsum("bhnd,hdc->bnc", y, self.wo)).mean(1))


class ChannelsFirst(nn.Module):
    """A weight stands on the left: W @ x."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(C, 3)), nn.Parameter(torch.randn(5, C))

    def forward(self, x: Tensor) -> Tensor:
        return (self.b @ (self.a @ x.transpose(1, 2)).relu()).mean(-1)


class Generated(nn.Module):
    """A learned code, of which a network makes a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(3, C), nn.Linear(8, 5)
        self.seed = nn.Parameter(torch.randn(12))
        self.make = nn.Linear(12, 8 * C)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.make(self.seed.sin()).view(8, C)
        return self.head(F.linear(self.embed(x), weight).relu())


class Looked(nn.Module):
    """An embedding whose width goes through a depthwise convolution, a norm and an outer product."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(10, C), nn.Linear(C, 5)
        self.mix = nn.Conv1d(C, C, 3, padding=1, groups=C)
        self.norm, self.wave, self.read = nn.LayerNorm(C), nn.Parameter(torch.randn(8)), nn.Linear(8, C)

    def forward(self, x: Tensor) -> Tensor:
        y = self.table(torch.arange(x.shape[1]))
        y = y + self.read((x[..., :1] * self.wave).sin())
        return self.head(self.norm(self.mix(y.transpose(1, 2)).transpose(1, 2)).mean(1))


CHANNELS = {
    "scaled": (Scaled, {"scale": (8,), "gate": (8,), "bias": (8,), "heat": (2, 1, 1), "place": (2, 7, 7)}),
    "low rank": (LowRank, {"down": (8, 8), "up": (8, 8), "base": (8, 8), "raw": (6, 8)}),
    "stacked": (lambda: Stacked("bnc,hcd->bhnd"), {"embed.weight": (8, 3)}),
    "stacked on the left": (lambda: Stacked("hcd,bnc->bhnd"), {"embed.weight": (8, 3)}),
    "channels first": (ChannelsFirst, {"a": (8, 3), "b": (5, 8)}),
    "generated": (Generated, {"seed": (6,), "make.weight": (32, 6)}),
    "looked up": (Looked, {"table.weight": (10, 8), "mix.weight": (8, 1, 3), "wave": (4,)}),
}


@pytest.mark.parametrize(("make", "left"), CHANNELS.values(), ids=CHANNELS)
def test_channels_along_parameters_shrink(
    make: Callable[[], nn.Module], left: dict[str, tuple[int, ...]], capture: str
) -> None:
    model = randomise(make()).eval()
    (pruned,) = certified_at((0.5,), model, torch.randn(2, 7, 3), capture)
    got = {name: tuple(p.shape) for name, p in pruned.named_parameters()}
    assert {name: got[name] for name in left} == left
    if isinstance(model, Stacked):  # either heads or head dims
        assert pruned.wq.numel() == model.wq.numel() // 4
