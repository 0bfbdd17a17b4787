"""Between blocks: images to tokens (b 16 c), and 4 x 4 tokens to 2 x 2 wider ones."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

IMAGE, SIDE = 8, 4
STEMS = ("patches", "convolutions", "reshape", "unfold")
POSITIONS = ("all", "patches", "interpolated", "none")
TRANSITIONS = (
    "slices",
    "reshape",
    "convolution",
    "depthwise",
    "unshuffle",
    "unfold",
    "subsampled attention",
    "pooled attention",
)


class Stem(nn.Module):
    """b 3 8 8 -> b (first 16) embed"""

    def __init__(self, kind: str, embed: int, first: int, position: str) -> None:
        super().__init__()
        self.kind, self.first, self.position = kind, first, position
        if kind == "patches":
            self.proj: nn.Module = nn.Conv2d(3, embed, 2, 2)
        elif kind == "convolutions":
            self.proj = nn.Sequential(
                nn.Conv2d(3, 4, 3, padding=1, bias=False),
                nn.BatchNorm2d(4),
                nn.ReLU(inplace=True),
                nn.Conv2d(4, embed, 3, 2, 1),
            )
        else:
            self.proj = nn.Linear(12 if kind == "reshape" else 27, embed)
        self.tokens = nn.ParameterList(torch.empty(1, 1, embed) for _ in range(first))
        if position == "interpolated":
            self.places = nn.Parameter(torch.empty(1, 2, 2, embed))
        elif position != "none":
            self.places = nn.Parameter(torch.empty(1, SIDE**2 + (first if position == "all" else 0), embed))

    def forward(self, x: Tensor) -> Tensor:
        b = x.shape[0]
        x = self.embedded(x)
        if self.position == "patches":
            x = x + self.places
        elif self.position == "interpolated":
            places = F.interpolate(self.places.permute(0, 3, 1, 2), size=(SIDE, SIDE), mode="bilinear")
            x = x + places.permute(0, 2, 3, 1).flatten(1, 2)
        if self.first:
            x = torch.cat([*(t.expand(b, -1, -1) for t in self.tokens), x], dim=1)
        return x + self.places if self.position == "all" else x

    def embedded(self, x: Tensor) -> Tensor:
        if self.kind in ("patches", "convolutions"):
            return self.proj(x).flatten(2).transpose(1, 2)
        if self.kind == "unfold":
            return self.proj(F.unfold(x, 3, stride=2, padding=1).transpose(1, 2))
        x = x.reshape(x.shape[0], 3, SIDE, 2, SIDE, 2).permute(0, 2, 4, 3, 5, 1)
        return self.proj(x.reshape(x.shape[0], SIDE * SIDE, 12))


class Transition(nn.Module):
    """b (first 16) c -> b (first 4) d"""

    def __init__(self, kind: str, width: int, wider: int, first: int) -> None:
        super().__init__()
        self.kind, self.first = kind, first
        if first:
            self.tokens = nn.Linear(width, wider)
        if kind in ("slices", "reshape"):
            self.norm, self.reduction = nn.LayerNorm(4 * width), nn.Linear(4 * width, wider, bias=False)
        elif kind == "convolution":
            self.proj, self.norm = nn.Conv2d(width, wider, 3, 2, 1), nn.LayerNorm(wider)
        elif kind == "depthwise":
            self.pool = nn.Conv2d(width, 2 * width, 3, 2, 1, groups=width)
            self.proj = nn.Conv2d(2 * width, wider, 1)
        elif kind == "unshuffle":
            self.proj = nn.Conv2d(4 * width, wider, 1)
        elif kind == "unfold":
            self.proj = nn.Linear(9 * width, wider)
        else:
            self.q, self.kv = nn.Linear(width, 4), nn.Linear(width, 2 * (2 + 3))
            self.proj, self.skip = nn.Linear(2 * 3, wider), nn.Linear(width, wider)

    def forward(self, x: Tensor) -> Tensor:
        y = self.merged(x[:, self.first :])
        return torch.cat((self.tokens(x[:, : self.first]), y), dim=1) if self.first else y

    def merged(self, x: Tensor) -> Tensor:
        b, _, c = x.shape
        grid = x.view(b, SIDE, SIDE, c)
        if self.kind == "slices":
            parts = [grid[:, 0::2, 0::2], grid[:, 1::2, 0::2], grid[:, 0::2, 1::2, :], grid[:, 1::2, 1::2, :]]
            return self.reduction(self.norm(torch.cat(parts, -1).view(b, -1, 4 * c)))
        if self.kind == "reshape":
            grid = grid.reshape(b, SIDE // 2, 2, SIDE // 2, 2, c).permute(0, 1, 3, 4, 2, 5)
            return self.reduction(self.norm(grid.flatten(3).flatten(1, 2)))
        if self.kind.endswith("attention"):
            return self.attended(x, grid)
        maps = grid.permute(0, 3, 1, 2)
        if self.kind == "unfold":
            return self.proj(F.unfold(maps, 3, stride=2, padding=1).transpose(1, 2))
        if self.kind == "unshuffle":
            maps = F.pixel_unshuffle(maps, 2)
        elif self.kind == "depthwise":
            maps = self.pool(maps)
        maps = self.proj(maps).flatten(2).transpose(1, 2)
        return self.norm(maps) if self.kind == "convolution" else maps

    def attended(self, x: Tensor, grid: Tensor) -> Tensor:
        """LeViT, MViT: fewer queries; two heads with keys of 2 and values of 3."""
        b, _, c = x.shape
        if self.kind == "subsampled attention":
            small = grid[:, ::2, ::2].reshape(b, -1, c)
        else:
            small = F.max_pool2d(grid.permute(0, 3, 1, 2), 2).flatten(2).transpose(1, 2)
        q = self.q(small).view(b, 4, 2, 2).transpose(1, 2)
        k, v = self.kv(x).view(b, SIDE * SIDE, 2, 5).split([2, 3], dim=3)
        weights = (q @ k.permute(0, 2, 3, 1) * 2**-0.5).softmax(dim=-1)
        out = (weights @ v.transpose(1, 2)).transpose(1, 2).reshape(b, -1, 6)
        return self.skip(small) + self.proj(F.hardswish(out))
