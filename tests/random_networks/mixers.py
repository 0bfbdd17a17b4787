"""Other ways to mix tokens: channel, linear, library and class attention, token MLPs, streams, windows."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from random_networks.projections import heads_first


class CrossCovariance(nn.Module):
    """XCiT: the softmax is over channels, whose head dims so are frozen."""

    def __init__(self, embed: int, heads: int, dim: int) -> None:
        super().__init__()
        self.heads, self.dim = heads, dim
        self.qkv, self.proj = nn.Linear(embed, 3 * heads * dim), nn.Linear(heads * dim, embed)
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, self.heads, self.dim).permute(2, 0, 3, 4, 1)
        q, k, v = qkv.unbind(0)
        q, k = F.normalize(q, p=2.0, dim=-1), F.normalize(k, p=2.0, dim=-1)
        weights = (q @ k.transpose(-2, -1) * self.temperature).softmax(dim=-1)
        return self.proj((weights @ v).permute(0, 3, 1, 2).reshape(b, n, -1))


class LinearAttention(nn.Module):
    """(k v) first, normalised by the sum of the keys, or by a softmax over tokens."""

    def __init__(self, embed: int, heads: int, dim: int, by_softmax: bool) -> None:
        super().__init__()
        self.heads, self.by_softmax = heads, by_softmax
        self.q, self.k, self.v = (nn.Linear(embed, heads * dim) for _ in range(3))
        self.proj = nn.Linear(heads * dim, embed)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (heads_first(layer(x), self.heads) for layer in (self.q, self.k, self.v))
        if self.by_softmax:  # CoaT's factorised attention
            out = q @ torch.einsum("bhnk,bhnv->bhkv", k.softmax(dim=2), v)
        else:
            q, k = F.relu(q), F.relu(k)
            total = q @ k.sum(dim=-2, keepdim=True).transpose(-1, -2)
            out = q @ (k.transpose(-1, -2) @ v) / (total + 1e-2)
        return self.proj(out.transpose(1, 2).flatten(2))


class Library(nn.Module):
    """nn.MultiheadAttention, on the same tokens, or on every second one."""

    def __init__(self, heads: int, dim: int, embed: int, kind: str) -> None:
        super().__init__()
        width = heads * dim
        self.kind = kind
        self.enter, self.leave = nn.Linear(embed, width), nn.Linear(width, embed)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=kind != "sequence first", bias=dim > 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        if self.kind == "sequence first":
            x = x.transpose(0, 1)
            return self.leave(self.attn(query=x, key=x, value=x)[0].transpose(0, 1))
        if self.kind == "cross":
            context = x[:, ::2]
            return self.leave(self.attn(x, context, context, need_weights=False)[0])
        return self.leave(self.attn(x, x, x, need_weights=False)[0])


class LibraryLayer(nn.Module):
    """nn.TransformerEncoderLayer, pre- or post-norm; its dropout draws in an order of its own."""

    def __init__(self, embed: int, heads: int, dim: int, norm_first: bool) -> None:
        super().__init__()
        width = heads * dim
        self.enter, self.leave = nn.Linear(embed, width), nn.Linear(width, embed)
        self.layer = nn.TransformerEncoderLayer(
            width, heads, 6, 0.0, batch_first=True, norm_first=norm_first, activation="gelu"
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(self.layer(self.enter(x)))


class ClassAttention(nn.Module):
    """CaiT: only the first token asks; the others pass."""

    def __init__(self, embed: int, heads: int, dim: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.kv = nn.Linear(embed, heads * dim), nn.Linear(embed, 2 * heads * dim)
        self.proj = nn.Linear(heads * dim, embed)

    def forward(self, x: Tensor) -> Tensor:
        q = heads_first(self.q(x[:, :1]), self.heads)
        k, v = self.kv(x).chunk(2, dim=-1)
        k, v = heads_first(k, self.heads), heads_first(v, self.heads)
        token = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return torch.cat([self.proj(token), x[:, 1:]], dim=1)


class TokenMixer(nn.Module):
    """MLP-Mixer, gMLP: a layer over the tokens, plain or as a gate."""

    def __init__(self, embed: int, tokens: int, hidden: int, gated: bool) -> None:
        super().__init__()
        self.gated = gated
        if gated:
            self.fc1, self.fc2 = nn.Linear(embed, 2 * hidden), nn.Linear(hidden, embed)
            self.norm, self.mix = nn.LayerNorm(hidden), nn.Linear(tokens, tokens)
        else:
            self.fc1, self.fc2 = nn.Linear(tokens, hidden), nn.Linear(hidden, tokens)

    def forward(self, x: Tensor) -> Tensor:
        if not self.gated:
            return self.fc2(F.gelu(self.fc1(x.transpose(1, 2)))).transpose(1, 2)
        u, v = self.fc1(x).chunk(2, dim=-1)
        v = self.mix(self.norm(v).transpose(-1, -2))
        return self.fc2(u * v.transpose(-1, -2))


class TwoStreams(nn.Module):
    """CrossViT: a narrow stream of its own; the first tokens are exchanged, the streams concatenated."""

    def __init__(self, embed: int, narrow: int) -> None:
        super().__init__()
        self.narrow = nn.Linear(embed, narrow)
        self.there, self.back = nn.Linear(embed, narrow), nn.Linear(narrow, embed)
        self.norm = nn.LayerNorm(embed + narrow)
        self.mix = nn.Linear(embed + narrow, embed)

    def forward(self, x: Tensor) -> Tensor:
        y = self.narrow(x).relu()
        a = torch.cat((self.back(y[:, :1]), x[:, 1:]), dim=1)
        b = torch.cat((self.there(x[:, 0:1]), y[:, 1:, ...]), dim=1)
        return self.mix(self.norm(torch.cat([a, b], dim=-1)))


class Windows(nn.Module):
    """Shifted windows of 2 x 2 patches around a module on tokens; the first tokens pass by."""

    def __init__(self, inner: nn.Module, first: int, side: int, shift: int) -> None:
        super().__init__()
        self.inner, self.first, self.side, self.shift = inner, first, side, shift

    def forward(self, x: Tensor) -> Tensor:
        b, _, c = x.shape
        s, w = self.side, self.side // 2
        y = x[:, self.first :].view(b, s, s, c)
        if self.shift:
            y = torch.roll(y, shifts=(-self.shift, -self.shift), dims=(1, 2))
        y = y.view(b, w, 2, w, 2, c).permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, 4, c)
        y = self.inner(y).view(b, w, w, 2, 2, -1).permute(0, 1, 3, 2, 4, 5).reshape(b, s, s, c)
        if self.shift:
            y = torch.roll(y, (self.shift, self.shift), (1, 2))
        y = y.reshape(b, s * s, c)
        return torch.cat((x[:, : self.first], y), dim=1) if self.first else y
