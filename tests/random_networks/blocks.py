"""One block of a network: what it does (`Block.kind`), and how it is wired into the residual stream."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from random_networks import mixers
from random_networks.attention import Attention, AttentionSpec
from random_networks.feedforward import Mlp
from random_networks.maps import MAPS, OnMap
from random_networks.norms import token_norm
from random_networks.spec import Brief
from random_networks.tricks import TRICKS

KINDS = (
    "mlp",
    "attention",
    "windows",
    "map",
    "trick",
    "channels",
    "linear attention",
    "library",
    "library layer",
    "class attention",
    "token mixer",
    "two streams",
)
SCALES = ("none", "vector", "scalar")
DROPS = ("none", "dropout", "path")
COPIES = ("none", "shared", "tied")


@dataclass(frozen=True, repr=False)
class Block(Brief):
    """Fields that the kind doesn't use say nothing."""

    kind: str = "mlp"
    attention: AttentionSpec = field(default_factory=AttentionSpec)
    mlp: str = "plain"
    map: str = "inverted"
    map_norm: str = "batch"
    trick: str = "memory tokens"
    hidden: int = 4
    variant: int = 0
    norm: str = "layer"
    post: bool = False
    residual: bool = True
    scale: str = "none"
    drop: str = "none"
    copy: str = "none"  # once more: the same module, or a second one with one weight tied to the first

    def build(self, width: int, first: int, side: int) -> list[nn.Module]:
        """The modules to apply one after the other."""
        block = self._one(width, first, side)
        if self.copy == "shared":
            return [block, block]
        if self.copy == "tied":
            tied = self._one(width, first, side)
            tie(tied, block)
            return [block, tied]
        return [block]

    def _one(self, width: int, first: int, side: int) -> nn.Module:
        inner = self._inner(width, first, side)
        return Wired(self, token_norm(self.norm, width), inner, width)

    def _inner(self, width: int, first: int, side: int) -> nn.Module:
        a, hidden = self.attention, self.hidden
        if self.kind == "attention":
            return Attention(width, first, side, a)
        if self.kind == "windows":
            return mixers.Windows(Attention(width, 0, 2, a), first, side, self.variant % 2)
        if self.kind == "map":
            return OnMap(MAPS[self.map](width, hidden, self.map_norm), first, side)
        if self.kind == "trick":
            return TRICKS[self.trick](width, hidden, side)
        if self.kind == "channels":
            return mixers.CrossCovariance(width, a.heads, a.key)
        if self.kind == "linear attention":
            return mixers.LinearAttention(width, a.heads, a.key, self.variant % 2 == 1)
        if self.kind == "library":
            kinds = ("self", "sequence first", "cross")
            return mixers.Library(a.heads, a.key, width, kinds[self.variant])
        if self.kind == "library layer":
            return mixers.LibraryLayer(width, a.heads, a.key, self.variant % 2 == 1)
        if self.kind == "class attention" and first:
            return mixers.ClassAttention(width, a.heads, a.key)
        if self.kind == "token mixer":
            return mixers.TokenMixer(width, first + side * side, hidden, self.variant % 2 == 1)
        if self.kind == "two streams":
            return mixers.TwoStreams(width, hidden)
        return Mlp(width, hidden, self.mlp, first, side)


class Wired(nn.Module):
    """Norm before or after, a scale, a dropout, a residual."""

    def __init__(self, block: Block, norm: nn.Module, inner: nn.Module, width: int) -> None:
        super().__init__()
        self.post, self.residual = block.post, block.residual
        self.norm, self.inner = norm, inner
        if block.scale != "none":
            self.gamma = nn.Parameter(torch.empty(width if block.scale == "vector" else 1))
        self.scaled = block.scale != "none"
        drops = {"dropout": nn.Dropout(0.2), "path": DropPath(0.2)}
        self.drop = drops.get(block.drop, nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.inner(x)) if self.post else self.inner(self.norm(x))
        y = y * self.gamma if self.scaled else y
        y = self.drop(y)
        return x + y if self.residual else y


class DropPath(nn.Module):
    """Stochastic depth: whole samples of a branch."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        keep = torch.rand(x.shape[0], *[1] * (x.ndim - 1), dtype=x.dtype) >= self.rate
        return x * keep / (1 - self.rate)


def tie(module: nn.Module, to: nn.Module) -> None:
    """Make the first matrix of a module, if it has one, the same tensor as that of another of its kind."""
    matrices = ((name, p) for name, p in to.named_parameters() if p.ndim >= 2)
    for name, weight in itertools.islice(matrices, 1):
        path, _, leaf = name.rpartition(".")
        setattr(module.get_submodule(path), leaf, weight)
