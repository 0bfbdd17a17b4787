"""x -> q, k, v (each b heads n dim): every way in which their rows lie in the weights."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LAYOUTS = (
    "separate",
    "3 h d",
    "h 3 d",
    "d 3 h",
    "chunk",
    "split",
    "slices",
    "levit",
    "q kv",
    "conv",
    "einsum",
    "concatenated bias",
    "sliced weight",
)
ACROSS = ("separate", "q kv", "einsum")  # keys and values may be of other tokens than the queries
UNEVEN = ("separate", "levit", "einsum")  # values may be wider than keys


def heads_first(x: Tensor, heads: int) -> Tensor:
    """b n (h d) -> b h n d"""
    b, n, c = x.shape
    return x.reshape(b, n, heads, c // heads).transpose(1, 2)


class Separate(nn.Module):
    """Three layers; several query heads may share the heads of keys and values."""

    def __init__(self, embed: int, heads: int, key: int, value: int, shared: int) -> None:
        super().__init__()
        self.heads, self.shared, self.key = heads, shared, key
        self.q = nn.Linear(embed, heads * key)
        self.k = nn.Linear(embed, shared * key, bias=False)
        self.v = nn.Linear(embed, shared * value)

    def forward(self, x: Tensor, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        b, n, _ = x.shape
        q = self.q(x).view(b, n, self.heads, self.key).transpose(1, 2)
        return q, heads_first(self.k(context), self.shared), heads_first(self.v(context), self.shared)


class QueryAndPair(nn.Module):
    """PVT: a layer for queries, one for keys and values."""

    def __init__(self, embed: int, heads: int, dim: int) -> None:
        super().__init__()
        self.heads, self.dim = heads, dim
        self.q, self.kv = nn.Linear(embed, heads * dim), nn.Linear(embed, 2 * heads * dim)

    def forward(self, x: Tensor, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        b, n, _ = x.shape
        q = self.q(x).reshape(b, n, self.heads, self.dim).permute(0, 2, 1, 3)
        kv = self.kv(context).reshape(b, -1, 2, self.heads, self.dim).permute(2, 0, 3, 1, 4)
        return q, kv[0], kv[1]


class ByEinsum(nn.Module):
    """JAX's: weights of three dimensions."""

    def __init__(self, embed: int, heads: int, key: int, value: int) -> None:
        super().__init__()
        self.wq, self.wk = (nn.Parameter(torch.empty(embed, heads, key)) for _ in range(2))
        self.wv = nn.Parameter(torch.empty(heads, value, embed))

    def forward(self, x: Tensor, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q = torch.einsum("bnc,chd->bhnd", x, self.wq)
        k = torch.einsum("b m c, c h d -> b h m d", context, self.wk)
        return q, k, torch.einsum("...mc,hdc->...hmd", context, self.wv)


class Fused(nn.Module):
    """One layer for all three."""

    def __init__(self, embed: int, heads: int, key: int, value: int, layout: str) -> None:
        super().__init__()
        self.heads, self.key, self.value, self.layout = heads, key, value, layout
        self.qkv = nn.Linear(embed, heads * (2 * key + value))

    def forward(self, x: Tensor, _: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        b, n, _ = x.shape
        h, d = self.heads, self.key
        rows, width = self.qkv(x), h * d
        if self.layout == "3 h d":
            q, k, v = rows.reshape(b, n, 3, h, d).permute(2, 0, 3, 1, 4).unbind(0)
        elif self.layout == "h 3 d":
            q, k, v = rows.view(b, n, h, 3 * d).transpose(1, 2).chunk(3, dim=-1)
        elif self.layout == "d 3 h":
            parts = rows.unflatten(-1, (d, 3, h)).permute(3, 0, 4, 1, 2)
            q, k, v = parts[0], parts[1], parts[2]
        elif self.layout == "levit":
            q, k, v = rows.view(b, n, h, -1).split([d, d, self.value], dim=3)
            q, k, v = q.permute(0, 2, 1, 3), k.permute(0, 2, 1, 3), v.permute(0, 2, 1, 3)
        elif self.layout == "slices":
            q, k, v = rows[..., :width], rows[..., width : 2 * width], rows[:, :, -width:]
            q, k, v = heads_first(q, h), heads_first(k, h), heads_first(v, h)
        else:
            q, k, v = rows.chunk(3, dim=-1) if self.layout == "chunk" else rows.split(width, dim=2)
            q, k, v = heads_first(q, h), heads_first(k, h), heads_first(v, h)
        return q, k, v


class ByConvolution(nn.Module):
    """A pointwise convolution; each head's rows are (q k v)."""

    def __init__(self, embed: int, heads: int, dim: int) -> None:
        super().__init__()
        self.heads, self.dim = heads, dim
        self.qkv = nn.Conv1d(embed, 3 * heads * dim, 1)

    def forward(self, x: Tensor, _: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        b, n, _ = x.shape
        rows = self.qkv(x.transpose(1, 2)).view(b, self.heads, self.dim * 3, n)
        q, k, v = rows.chunk(3, dim=2)
        return q.transpose(-1, -2), k.mT, v.mT


class ConcatenatedBias(nn.Module):
    """BEiT: three biases, of which the key's is a buffer of zeros."""

    def __init__(self, embed: int, heads: int, dim: int) -> None:
        super().__init__()
        self.heads, width = heads, heads * dim
        self.qkv = nn.Linear(embed, 3 * width, bias=False)
        self.q_bias, self.v_bias = nn.Parameter(torch.empty(width)), nn.Parameter(torch.empty(width))
        self.register_buffer("k_bias", torch.zeros(width), persistent=False)

    def forward(self, x: Tensor, _: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        b, n, _ = x.shape
        bias = torch.cat((self.q_bias, self.k_bias, self.v_bias))
        rows = F.linear(input=x, weight=self.qkv.weight, bias=bias)
        q, k, v = rows.reshape(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        return q, k, v


class SlicedWeight(nn.Module):
    """One weight, cut before it is used."""

    def __init__(self, embed: int, heads: int, dim: int) -> None:
        super().__init__()
        self.heads, self.width = heads, heads * dim
        self.qkv = nn.Linear(embed, 3 * self.width)

    def forward(self, x: Tensor, _: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        w, b, h = self.qkv.weight, self.qkv.bias, self.heads
        q = F.linear(x, w[: self.width], b[: self.width])
        k, v = F.linear(x, w[self.width :], b[self.width :]).chunk(2, -1)
        return heads_first(q, h), heads_first(k, h), heads_first(v, h)


def projection(layout: str, embed: int, heads: int, key: int, value: int, shared: int) -> nn.Module:
    """The module for a name in `LAYOUTS`; `value` counts in `UNEVEN` ones, `shared` in "separate"."""
    if layout == "separate":
        return Separate(embed, heads, key, value, shared)
    if layout == "einsum":
        return ByEinsum(embed, heads, key, value)
    if layout == "levit":
        return Fused(embed, heads, key, value, layout)
    made = {
        "q kv": QueryAndPair,
        "conv": ByConvolution,
        "concatenated bias": ConcatenatedBias,
        "sliced weight": SlicedWeight,
    }
    return made[layout](embed, heads, key) if layout in made else Fused(embed, heads, key, key, layout)
