"""Attention between tokens, of every layout, score, position, sharing and gate."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from random_networks.norms import RmsNorm, token_norm
from random_networks.positions import Bias, LocalPositions, Rotary
from random_networks.projections import ACROSS, UNEVEN, projection
from random_networks.spec import Brief

SCORES = ("given", "of the shape", "of a root", "sdpa", "sdpa given", "cosine", "temperature")
QK_NORMS = ("none", "layer", "rms")
REPEATS = ("expand", "interleave", "flag")
TALKING = ("none", "linear", "convolution")
REDUCED = ("none", "strided", "depthwise", "pooled", "slices")
GATES = ("none", "channels", "heads")
MERGED = ("reshape", "flatten", "shape of x", "einsum")


@dataclass(frozen=True, repr=False)
class AttentionSpec(Brief):
    """What an attention does; where two choices exclude each other, the module says which one holds."""

    layout: str = "separate"
    heads: int = 2
    key: int = 2
    value: int = 2
    shared: int = 1  # how many query heads share a key head
    repeat: str = "expand"
    scores: str = "given"
    qk_norm: str = "none"
    rotary: str = "none"
    bias: str = "none"
    talking: str = "none"
    reduced: str = "none"
    gate: str = "none"
    merged: str = "reshape"
    inner_norm: str = "none"
    local: bool = False
    dropout: bool = False


class Attention(nn.Module):
    """b n embed -> b n embed; the first tokens are no patches, the others a square map."""

    def __init__(self, embed: int, first: int, side: int, spec: AttentionSpec) -> None:
        super().__init__()
        layout = spec.layout
        if (spec.reduced != "none" or spec.shared > 1) and layout not in ACROSS:
            layout = "separate" if spec.shared > 1 else "q kv"
        self.spec, self.heads, self.dim = spec, spec.heads, spec.key
        self.value = spec.value if layout in UNEVEN else spec.key
        self.groups = self.heads // spec.shared if layout == "separate" else self.heads
        self.project = projection(layout, embed, self.heads, self.dim, self.value, self.groups)
        n = first + side * side
        self.reduce = Reduced(spec.reduced, embed, first, side) if spec.reduced != "none" else None
        m = n if self.reduce is None else self.reduce.tokens
        if spec.qk_norm != "none":
            norm = nn.LayerNorm if spec.qk_norm == "layer" else RmsNorm
            self.q_norm, self.k_norm = norm(self.dim), norm(self.dim)
        turns = spec.rotary != "none" and self.dim % 2 == 0 and self.reduce is None
        self.rotary = Rotary(spec.rotary, first, n, self.dim) if turns else None
        self.bias = Bias(spec.bias, self.heads, n, m) if spec.bias != "none" else None
        if spec.scores in ("cosine", "temperature"):
            self.temperature = nn.Parameter(torch.empty(self.heads, 1, 1))
        if spec.talking != "none":
            talk = nn.Linear if spec.talking == "linear" else Pointwise
            self.before, self.after = talk(self.heads, self.heads), talk(self.heads, self.heads)
        width = self.heads * self.value
        if spec.gate != "none":
            self.gate = nn.Linear(embed, self.heads if spec.gate == "heads" else width)
        self.local = LocalPositions(width, first, side) if spec.local else None
        self.norm = token_norm(spec.inner_norm, width)
        self.drop = nn.Dropout(0.1) if spec.dropout else nn.Identity()
        if spec.merged == "einsum":
            self.out = nn.Parameter(torch.empty(self.heads, self.value, embed))
        else:
            self.proj = nn.Linear(width, embed)
        self.fits = width == embed

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.project(x, x if self.reduce is None else self.reduce(x))
        if self.spec.qk_norm != "none":
            q, k = self.q_norm(q), self.k_norm(k)
        if self.rotary is not None:
            q, k = self.rotary(q), self.rotary(k)
        return self.merge(self.attend(q, k, v), x)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        spec = self.spec
        bias = None if self.bias is None else self.bias()
        by_op = spec.scores.startswith("sdpa") and spec.talking == "none"
        flag = by_op and spec.repeat == "flag" and self.groups < self.heads
        if self.groups < self.heads and not flag:
            k, v = self.repeat(k), self.repeat(v)
        if by_op:
            rate = 0.1 if spec.dropout and self.training else 0.0
            options = {"attn_mask": bias, "dropout_p": rate, "enable_gqa": flag}
            if spec.scores == "sdpa given":
                options["scale"] = 0.6
            return F.scaled_dot_product_attention(q, k, v, **options)
        scores = self.scores(q, k)
        scores = scores if bias is None else scores + bias
        return self.drop(self.weights(scores)) @ v

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        kind = self.spec.scores
        if kind == "cosine":
            scale = torch.clamp(self.temperature, max=4.0).exp()
            return F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1) * scale
        if kind == "temperature":
            return torch.einsum("bhnd,bhmd->bhnm", q, k) * self.temperature
        if kind == "of the shape":
            return (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
        if kind == "of a root":
            return torch.matmul(q, k.mT) / math.sqrt(k.size(-1))
        return q @ k.transpose(-2, -1) * self.dim**-0.5

    def weights(self, scores: Tensor) -> Tensor:
        if self.spec.talking == "linear":
            mixed = self.before(scores.permute(0, 2, 3, 1)).softmax(dim=-2)
            return self.after(mixed).permute(0, 3, 1, 2)
        if self.spec.talking == "convolution":
            return self.after(F.softmax(self.before(scores), dim=-1))
        return scores.softmax(dim=-1)

    def repeat(self, x: Tensor) -> Tensor:
        times = self.heads // self.groups
        if self.spec.repeat == "interleave":
            return x.repeat_interleave(times, dim=1)
        b, h, n, d = x.shape
        return x[:, :, None, :, :].expand(b, h, times, n, d).reshape(b, h * times, n, d)

    def merge(self, out: Tensor, x: Tensor) -> Tensor:
        """b heads n value -> b n embed"""
        b, n, c = x.shape
        if self.spec.gate == "heads":
            out = out * self.gate(x).sigmoid().transpose(1, 2).unsqueeze(-1)
        if self.spec.merged == "flatten":
            y = out.permute(0, 2, 1, 3).flatten(2)
        elif self.spec.merged == "shape of x" and self.fits:
            y = out.transpose(1, 2).reshape(b, n, c)
        else:
            y = out.transpose(1, 2).reshape(b, n, self.heads * self.value)
        if self.spec.gate == "channels":
            y = y * torch.sigmoid(self.gate(x))
        if self.local is not None:
            y = y + self.local(y)
        y = self.norm(y)
        if self.spec.merged == "einsum":
            return torch.einsum("...hd,hde->...e", y.unflatten(-1, (self.heads, self.value)), self.out)
        return self.proj(y)


class Pointwise(nn.Conv2d):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 1)


class Reduced(nn.Module):
    """Fewer tokens for keys and values: b n c -> b m c, of the patches alone."""

    def __init__(self, kind: str, embed: int, first: int, side: int) -> None:
        super().__init__()
        self.kind, self.first, self.side = kind, first, side
        self.tokens = (side // 2) ** 2
        self.norm = nn.LayerNorm(embed)
        if kind == "strided":
            self.conv = nn.Conv2d(embed, embed, 2, 2)
        elif kind == "depthwise":
            self.conv = nn.Conv2d(embed, embed, 3, 2, 1, groups=embed, bias=False)
        elif kind == "pooled":
            self.conv = nn.Conv2d(embed, embed, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, _, c = x.shape
        if self.kind == "slices":
            grid = x[:, self.first :].view(b, self.side, self.side, c)[:, ::2, ::2]
            return self.norm(grid.reshape(b, -1, c))
        patches = x[:, self.first :].permute(0, 2, 1).reshape(b, c, self.side, self.side)
        if self.kind == "pooled":
            patches = F.adaptive_avg_pool2d(patches, self.side // 2)
        patches = self.conv(patches).reshape(b, c, -1).permute(0, 2, 1)
        return F.gelu(self.norm(patches)) if self.kind == "pooled" else self.norm(patches)
