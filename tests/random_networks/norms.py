"""Norms over the channels of tokens (b n c) and of maps (b c h w), as layers and by hand."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TOKEN_NORMS = ("layer", "none", "rms", "rms layer", "unit", "batch", "group", "by hand")
MAP_NORMS = ("batch", "none", "group", "group of one", "layer", "by hand", "instance")


def token_norm(kind: str, width: int) -> nn.Module:
    """A norm by its name in `TOKEN_NORMS`."""
    if kind == "layer":
        return nn.LayerNorm(width, eps=1e-6)
    if kind == "rms layer":
        return nn.RMSNorm(width, eps=1e-3)
    if kind in ("batch", "group"):
        return ChannelsSecond(map_norm(kind, width, dims=1))
    made = {"rms": RmsNorm, "unit": UnitNorm, "by hand": NormByHand}
    return made[kind](width) if kind in made else nn.Identity()


def map_norm(kind: str, width: int, dims: int = 2) -> nn.Module:
    """A norm by its name in `MAP_NORMS`."""
    if kind == "batch":
        return (nn.BatchNorm1d if dims == 1 else nn.BatchNorm2d)(width, eps=0.01)
    if kind == "group":
        return nn.GroupNorm(math.gcd(width, 4), width, eps=0.02)
    if kind == "group of one":
        return nn.GroupNorm(1, width)
    if kind == "instance":
        return nn.InstanceNorm2d(width, affine=True)
    made = {"layer": ChannelsLast, "by hand": MapNormByHand}
    return made[kind](width) if kind in made else nn.Identity()


class RmsNorm(nn.Module):
    """Of the mean of squares."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight


class UnitNorm(nn.Module):
    """A unit vector times the root of the width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width, self.gamma = width, nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=-1, eps=1e-6) * self.width**0.5 * self.gamma


class NormByHand(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.empty(width)), nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:
        var, mean = torch.var_mean(x, dim=-1, correction=0, keepdim=True)
        return (x - mean) * torch.rsqrt(var + 1e-5) * self.weight + self.bias


class MapNormByHand(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.empty(width)), nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(1, keepdim=True)
        var = (x - mean).pow(2).mean(1, keepdim=True)
        x = (x - mean) / torch.sqrt(var + 1e-6)
        return self.weight[:, None, None] * x + self.bias[:, None, None]


class ChannelsSecond(nn.Module):
    """A norm of (b c n) on tokens."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.transpose(1, 2)).transpose(1, 2)


class ChannelsLast(nn.Module):
    """A layer norm on maps."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
