"""Random small vision transformers of the blocks that occur in real ones: each must come out exact.

100 networks by default; `FXPRUNE_NETWORKS=2000 pytest tests/test_random_networks.py` tries more.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from exactness import assert_exact
from helpers import randomise
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import fxprune

NETWORKS = int(os.environ.get("FXPRUNE_NETWORKS", "100"))
INPUTS, TOKENS, CLASSES = 3, 5, 2
LAYOUTS = ("3 h d", "h 3 d", "separate", "levit")
MLPS = ("plain", "gated", "packed gate")
NORMS = ("layer", "rms", "batch", "none")


@dataclass(frozen=True)
class Block:
    """What one block of a network does, and how it is wired."""

    kind: str  # "attention", "mlp" or "concat"
    layout: str = "separate"
    mlp: str = "plain"
    norm: str = "layer"
    heads: int = 2
    dim: int = 2
    residual: bool = True
    repeat: bool = False  # the same module once more

    def build(self, embed: int) -> nn.Module:
        if self.kind == "attention":
            inner: nn.Module = Attention(embed, self.heads, self.dim, self.layout)
        elif self.kind == "mlp":
            inner = Mlp(embed, self.heads * self.dim, self.mlp)
        else:
            inner = TwoStreams(embed, self.heads * self.dim)
        return Wired(norm(self.norm, embed), inner, self.residual)


@dataclass(frozen=True)
class Network:
    """A whole network: what a failing example prints."""

    embed: int
    blocks: tuple[Block, ...] = field(default=())
    features: bool = False  # a second output, from before the last norm
    flat: bool = False  # classify all tokens at once, (n c) -> classes

    def build(self) -> nn.Module:
        return randomise(Vit(self).eval())


class Vit(nn.Module):
    """An embedding, blocks, a classifier, and perhaps a second head on the features."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        embed = network.embed
        self.embed = nn.Linear(INPUTS, embed)
        self.position = nn.Parameter(torch.empty(1, TOKENS, embed))
        self.blocks = nn.ModuleList(block.build(embed) for block in network.blocks)
        self.times = [2 if block.repeat else 1 for block in network.blocks]
        self.norm = nn.LayerNorm(embed)
        self.flat = network.flat
        self.head = nn.Linear(TOKENS * embed if network.flat else embed, CLASSES)
        self.second = nn.Linear(embed, CLASSES) if network.features else None

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = self.embed(x) + self.position
        for block, times in zip(self.blocks, self.times, strict=True):
            for _ in range(times):
                x = block(x)
        y = self.norm(x)
        y = self.head(y.flatten(1) if self.flat else y.mean(1))
        return y if self.second is None else (y, self.second(x))


class Wired(nn.Module):
    """Pre-norm, with or without a residual."""

    def __init__(self, norm: nn.Module, inner: nn.Module, residual: bool) -> None:
        super().__init__()
        self.norm, self.inner, self.residual = norm, inner, residual

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(self.norm(x))
        return x + y if self.residual else y


class Attention(nn.Module):
    """Self-attention; the layouts differ in how the rows of q, k and v lie in their weights."""

    def __init__(self, embed: int, heads: int, dim: int, layout: str) -> None:
        super().__init__()
        self.heads, self.dim, self.layout = heads, dim, layout
        self.value = 2 * dim if layout == "levit" else dim
        if layout == "separate":
            self.q, self.k, self.v = (nn.Linear(embed, heads * dim) for _ in range(3))
        else:
            self.qkv = nn.Linear(embed, heads * (2 * dim + self.value))
        self.proj = nn.Linear(heads * self.value, embed)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = self.split(x)
        attention = (q @ k.transpose(-2, -1) * self.dim**-0.5).softmax(-1)
        return self.proj((attention @ v).transpose(1, 2).reshape(b, n, self.heads * self.value))

    def split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v: b heads n dim."""
        b, n, _ = x.shape
        if self.layout == "3 h d":
            q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, self.dim).permute(2, 0, 3, 1, 4).unbind(0)
        elif self.layout == "h 3 d":
            q, k, v = self.qkv(x).view(b, n, self.heads, 3, self.dim).permute(3, 0, 2, 1, 4).unbind(0)
        elif self.layout == "levit":
            rows = self.qkv(x).view(b, n, self.heads, -1).transpose(1, 2)
            q, k, v = rows.split([self.dim, self.dim, self.value], dim=3)
        else:
            shape = (b, n, self.heads, self.dim)
            q, k, v = (layer(x).view(shape).transpose(1, 2) for layer in (self.q, self.k, self.v))
        return q, k, v


class Mlp(nn.Module):
    """Two layers; gated: the product of two, from layers of their own or from halves of one."""

    def __init__(self, embed: int, hidden: int, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.fc1 = nn.Linear(embed, hidden * (2 if kind == "packed gate" else 1))
        self.gate = nn.Linear(embed, hidden) if kind == "gated" else None
        self.fc2 = nn.Linear(hidden, embed)

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc1(x)
        if self.kind == "packed gate":
            y, gate = y.chunk(2, dim=-1)
            return self.fc2(F.silu(gate) * y)
        y = F.gelu(y)
        return self.fc2(y if self.gate is None else y * self.gate(x))


class TwoStreams(nn.Module):
    """The input and a narrow copy of it, concatenated, with a layer on top."""

    def __init__(self, embed: int, narrow: int) -> None:
        super().__init__()
        self.narrow = nn.Linear(embed, narrow)
        self.norm = nn.LayerNorm(embed + narrow)
        self.mix = nn.Linear(embed + narrow, embed)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(self.norm(torch.cat([x, self.narrow(x).relu()], dim=-1)))


class RmsNorm(nn.Module):
    """Written by hand, of the mean of squares."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight


class ChannelNorm(nn.Module):
    """A batch norm over the channels of tokens."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm1d(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(x.transpose(1, 2)).transpose(1, 2)


def norm(kind: str, width: int) -> nn.Module:
    """A norm by its name in `NORMS`."""
    made = {"layer": nn.LayerNorm, "rms": RmsNorm, "batch": ChannelNorm}
    return made[kind](width) if kind in made else nn.Identity()


blocks = st.builds(
    Block,
    kind=st.sampled_from(["attention", "attention", "mlp", "concat"]),
    layout=st.sampled_from(LAYOUTS),
    mlp=st.sampled_from(MLPS),
    norm=st.sampled_from(NORMS),
    heads=st.integers(1, 4),
    dim=st.integers(1, 4),
    residual=st.booleans(),
    repeat=st.booleans(),
)
networks = st.builds(
    Network,
    embed=st.integers(2, 9),
    blocks=st.lists(blocks, min_size=1, max_size=3).map(tuple),
    features=st.booleans(),
    flat=st.booleans(),
)


@settings(
    max_examples=NETWORKS,
    deadline=None,
    derandomize=NETWORKS <= 100,  # the same networks in every run of the default suite
    suppress_health_check=[HealthCheck.too_slow],
)
@given(
    network=networks,
    ratio=st.sampled_from([0.2, 0.25, 0.5, 0.66, 0.75, 0.9]),
    attention=st.sampled_from(["auto", "heads", "head_dim"]),
    round_to=st.sampled_from([1, 1, 2, 4]),
)
def test_a_random_network_is_pruned_exactly(
    network: Network, ratio: float, attention: str, round_to: int
) -> None:
    model = network.build()
    example = torch.zeros(2, TOKENS, INPUTS)
    pruned = fxprune.prune(
        model, ratio, example_inputs=example, attention=attention, round_to=round_to, capture="symbolic"
    )
    note(str(pruned.code))
    assert_exact(model, pruned, 2, 5)
    assert_embedding_shrinks(network, pruned, ratio, round_to)


def assert_embedding_shrinks(
    network: Network, pruned: torch.fx.GraphModule, ratio: float, round_to: int
) -> None:
    """Exactness alone would hold if nothing were ever cut."""
    left, whole = pruned.embed.weight.shape[0], network.embed
    assert math.ceil(whole * (1 - ratio)) - 1 <= left <= whole
    if round_to == 1 and ratio >= 0.5 and whole >= 4:
        assert left < whole
