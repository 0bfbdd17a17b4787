"""Positions as attention sees them: biases per pair of tokens, and rotations of queries and keys."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BIASES = ("none", "table", "columns", "mlp", "mask")
ROTARY = ("none", "halves", "strides", "pairs")
OFFSETS = 7


class Bias(nn.Module):
    """-> 1 heads n m, or what broadcasts to it."""

    def __init__(self, kind: str, heads: int, n: int, m: int) -> None:
        super().__init__()
        self.kind, self.heads, self.n, self.m = kind, heads, n, m
        index = (torch.arange(n)[:, None] - torch.arange(m)[None, :]) % OFFSETS
        self.register_buffer("index", index, persistent=kind == "table")
        if kind == "table":  # Swin: heads come last
            self.table = nn.Parameter(torch.empty(OFFSETS, heads))
        elif kind == "columns":  # LeViT: heads come first
            self.table = nn.Parameter(torch.empty(heads, OFFSETS))
        elif kind == "mlp":  # Swin v2: from coordinates to heads
            self.mlp = nn.Sequential(nn.Linear(2, 5), nn.ReLU(), nn.Linear(5, heads, bias=False))
            self.register_buffer("places", torch.arange(2.0 * OFFSETS).view(1, OFFSETS, 2))
        else:
            self.register_buffer("mask", torch.zeros(n, m).fill_diagonal_(-2.0), persistent=False)

    def forward(self) -> Tensor:
        if self.kind == "table":
            bias = self.table[self.index.view(-1)].view(self.n, self.m, -1)
            return bias.permute(2, 0, 1).contiguous().unsqueeze(0)
        if self.kind == "columns":
            return self.table[:, self.index]
        if self.kind == "mlp":
            table = self.mlp(self.places).view(-1, self.heads)
            bias = table[self.index.view(-1)].view(self.n, self.m, -1).permute(2, 0, 1)
            return (16 * torch.sigmoid(bias)).unsqueeze(0)
        return self.mask


class Rotary(nn.Module):
    """Rotates the patches' head dims; the first tokens stay as they are."""

    def __init__(self, kind: str, first: int, n: int, dim: int) -> None:
        super().__init__()
        self.kind, self.first = kind, first
        angles = torch.arange(n - first)[:, None] * 0.3 ** torch.arange(dim // 2)
        self.register_buffer("angles", angles, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if not self.first:
            return self.rotate(x)
        return torch.cat([x[:, :, : self.first], self.rotate(x[:, :, self.first :])], dim=2)

    def rotate(self, x: Tensor) -> Tensor:
        if self.kind == "halves":
            angles = torch.cat((self.angles, self.angles), dim=-1)
            a, b = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
            return x * angles.cos() + torch.cat((-b, a), dim=-1) * angles.sin()
        if self.kind == "strides":
            angles = self.angles.repeat_interleave(2, -1)
            turned = torch.stack([-x[..., 1::2], x[..., ::2]], -1).reshape(x.shape)
            return x * angles.cos() + turned * angles.sin()
        a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
        cos, sin = self.angles.cos(), self.angles.sin()
        return torch.stack((a * cos - b * sin, a * sin + b * cos), dim=-1).flatten(-2)


class LocalPositions(nn.Module):
    """LePE, CPE: a depthwise convolution of the map of the patches."""

    def __init__(self, width: int, first: int, side: int) -> None:
        super().__init__()
        self.first, self.side = first, side
        self.conv = nn.Conv2d(width, width, 3, padding=1, groups=width)

    def forward(self, x: Tensor) -> Tensor:
        b, _, c = x.shape
        patches = x[:, self.first :].transpose(1, 2).reshape(b, c, self.side, self.side)
        return F.pad(self.conv(patches).flatten(2).transpose(1, 2), (0, 0, self.first, 0))
