"""Two layers with something between them: gates of every spelling, convolutions, norms, tied weights."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MLPS = (
    "plain",
    "gated",
    "chunk",
    "glu",
    "slices",
    "strides",
    "unflatten",
    "split",
    "depthwise",
    "shortcut",
    "normed",
    "response",
    "tied",
    "halves",
    "einsum",
)
PACKED = ("chunk", "glu", "slices", "strides", "unflatten", "split")


class Mlp(nn.Module):
    """b n embed -> b n embed"""

    def __init__(self, embed: int, hidden: int, kind: str, first: int, side: int) -> None:
        super().__init__()
        self.kind, self.first, self.side, self.hidden = kind, first, side, hidden
        self.fc1 = nn.Linear(embed, hidden * (2 if kind in PACKED else 1))
        if kind == "tied":
            self.bias = nn.Parameter(torch.empty(embed))
        elif kind == "einsum":
            self.out = nn.Parameter(torch.empty(hidden, embed))
        else:
            self.fc2 = nn.Linear(hidden, embed)
        if kind == "gated":
            self.gate = nn.Linear(embed, hidden, bias=False)
        elif kind in ("depthwise", "shortcut"):
            self.conv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
            self.bn = nn.BatchNorm2d(hidden, eps=1e-2)
        elif kind == "normed":
            self.norm = nn.LayerNorm(hidden)
        elif kind == "response":
            self.gamma, self.beta = (nn.Parameter(torch.empty(1, 1, hidden)) for _ in range(2))
        elif kind == "halves":
            self.other = nn.Linear(embed, 3)
            self.fc2 = nn.Linear(hidden + 3, embed)

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc1(x)
        if self.kind in PACKED:
            return self.fc2(self.gated(y))
        if self.kind == "gated":
            return self.fc2(F.silu(y) * self.gate(x))
        if self.kind in ("depthwise", "shortcut"):
            return self.fc2(self.convolved(y))
        y = F.gelu(y)
        if self.kind == "normed":
            y = self.norm(y)
        elif self.kind == "response":  # ConvNeXt v2: a norm over tokens, relative to its mean over channels
            size = torch.norm(y, p=2, dim=1, keepdim=True)
            y = self.gamma * (y * size / (size.mean(dim=-1, keepdim=True) + 1e-2)) + self.beta + y
        elif self.kind == "tied":
            return y @ self.fc1.weight + self.bias
        elif self.kind == "halves":
            y = torch.concat((self.other(x).tanh(), y), -1)
        elif self.kind == "einsum":
            return torch.einsum("bnh,hc->bnc", y, self.out)
        return self.fc2(y)

    def gated(self, y: Tensor) -> Tensor:
        n = self.hidden
        if self.kind == "glu":
            return F.glu(y, dim=-1)
        if self.kind == "slices":
            return y[..., :n].sigmoid() * y[..., n:]
        if self.kind == "strides":
            return y[..., ::2] * y[..., 1::2].sigmoid()
        if self.kind == "unflatten":
            a, b = y.unflatten(-1, (2, -1)).unbind(-2)
        elif self.kind == "split":
            a, b = torch.split(y, [n, n], dim=2)
        else:
            a, b = y.chunk(2, dim=-1)
        return F.silu(a) * b

    def convolved(self, y: Tensor) -> Tensor:
        """PVT v2, LocalViT: a depthwise convolution of the patches' map."""
        b, _, c = y.shape
        patches = y[:, self.first :].transpose(1, 2).view(b, c, self.side, self.side)
        mixed = F.gelu(self.bn(self.conv(patches))).flatten(2).transpose(1, 2)
        if self.first:
            mixed = torch.cat([y[:, : self.first], mixed], dim=1)
        return y + mixed if self.kind == "shortcut" else mixed
