"""Relative position tables, rotary positions, windows and patch merging."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hard_modules.case import CLASSES, DIM, HEADS, TOKENS, Tokens, alone, case
from hard_modules.layouts import Attention, FusedAttention, heads_first, heads_last

# ---------------------------------------------------------------- tables of relative positions


class RelativePositions(FusedAttention):
    """3 x 3 windows: 25 offsets x heads."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(25, HEADS))
        places = torch.stack(torch.meshgrid(torch.arange(3), torch.arange(3), indexing="ij"))
        offsets = places.flatten(1)[:, :, None] - places.flatten(1)[:, None, :] + 2
        self.register_buffer("index", offsets[0] * 5 + offsets[1], persistent=False)

    def attend(self, x: Tensor, bias: Tensor) -> Tensor:
        b, n, c = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, HEADS, c // HEADS).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0] * DIM**-0.5, qkv[1], qkv[2]
        out = (q @ k.transpose(-2, -1) + bias).softmax(-1) @ v
        return self.proj(out.transpose(1, 2).reshape(b, n, c))


@case(block__qkv__weight=(36, 12), block__table=(25, 2))
class RelativePositionTable(RelativePositions):
    def forward(self, x: Tensor) -> Tensor:
        bias = self.table[self.index.view(-1)].view(TOKENS, TOKENS, -1)
        return self.attend(x, bias.permute(2, 0, 1).contiguous().unsqueeze(0))


@case(block__qkv__weight=(36, 12), block__table=(2, 25))
class PositionsByAttention(RelativePositions):
    """LeViT's: heads come first, and the table is indexed by columns."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(HEADS, 25))

    def forward(self, x: Tensor) -> Tensor:
        return self.attend(x, self.table[:, self.index])


@case(block__qkv__weight=(36, 12), block__positions__2__weight=(2, 6))
class PositionsByMlp(RelativePositions):
    """Swin v2's: an MLP from log-spaced coordinates to heads."""

    def __init__(self) -> None:
        super().__init__()
        self.positions = nn.Sequential(nn.Linear(2, 12), nn.ReLU(), nn.Linear(12, HEADS, bias=False))
        grid = torch.arange(-2.0, 3.0)
        self.register_buffer(
            "coordinates",
            torch.stack(torch.meshgrid(grid, grid, indexing="ij"), -1)[None],
            persistent=False,
        )

    def forward(self, x: Tensor) -> Tensor:
        table = self.positions(self.coordinates).view(-1, HEADS)
        bias = table[self.index.view(-1)].view(TOKENS, TOKENS, -1).permute(2, 0, 1)
        return self.attend(x, 16 * torch.sigmoid(bias).unsqueeze(0))


# ---------------------------------------------------------------- rotary positions


class Rotary(Attention):
    def __init__(self) -> None:
        super().__init__()
        angles = torch.outer(torch.arange(TOKENS).float(), 10 ** -(torch.arange(DIM // 2) / 3))
        self.register_buffer("angles", angles, persistent=False)

    def rotate(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (heads_first(p(x)) for p in (self.q, self.k, self.v))
        q, k = self.rotate(q), self.rotate(k)
        return self.proj(heads_last(F.scaled_dot_product_attention(q, k, v)))


@case(block__q__weight=(12, 12), block__proj__weight=(12, 12))
class RotaryByHalves(Rotary):
    def rotate(self, x: Tensor) -> Tensor:
        angles = torch.cat((self.angles, self.angles), dim=-1)
        a, b = x.chunk(2, dim=-1)
        return x * angles.cos() + torch.cat((-b, a), dim=-1) * angles.sin()


@case(block__q__weight=(12, 12), block__proj__weight=(12, 12))
class RotaryByHalfSlices(Rotary):
    """Llama's rotate_half: bounds computed from the shape."""

    def rotate(self, x: Tensor) -> Tensor:
        angles = torch.cat((self.angles, self.angles), dim=-1)
        a, b = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
        return x * angles.cos() + torch.cat((-b, a), dim=-1) * angles.sin()


@case(block__q__weight=(12, 12), block__proj__weight=(12, 12))
class RotaryByStrides(Rotary):
    """timm's rot: pairs alternate."""

    def rotate(self, x: Tensor) -> Tensor:
        angles = self.angles.repeat_interleave(2, -1)
        turned = torch.stack([-x[..., 1::2], x[..., ::2]], -1).reshape(x.shape)
        return x * angles.cos() + turned * angles.sin()


@case(block__q__weight=(12, 12), block__proj__weight=(12, 12))
class RotaryByPairs(Rotary):
    def rotate(self, x: Tensor) -> Tensor:
        a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
        cos, sin = self.angles.cos(), self.angles.sin()
        return torch.stack((a * cos - b * sin, a * sin + b * cos), dim=-1).flatten(-2)


@case(block__q__weight=(12, 12), block__proj__weight=(12, 12))
class RotaryByComplexNumbers(Rotary):
    """Llama's: a pair of channels is a complex number, and a position turns it."""

    def rotate(self, x: Tensor) -> Tensor:
        turns = torch.polar(torch.ones_like(self.angles), self.angles)
        pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
        return torch.view_as_real(pairs * turns).flatten(3).type_as(x)


@case(block__q__weight=(12, 12), block__proj__weight=(12, 12))
class RotaryWithoutClassToken(Rotary):
    """EVA: the first token is not rotated, and its positions are cut from the table."""

    def rotate(self, x: Tensor) -> Tensor:
        angles = torch.cat((self.angles, self.angles), dim=-1)[1:]
        a, b = x[:, :, 1:, :].chunk(2, dim=-1)
        rest = x[:, :, 1:] * angles.cos() + torch.cat((-b, a), dim=-1) * angles.sin()
        return torch.cat([x[:, :, :1, :], rest], dim=2)


# ---------------------------------------------------------------- windows and patch merging


class Merging(nn.Module):
    """A map of 4 x 4 merged to 2 x 2 with 4 times the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(5, 8)
        self.norm = nn.LayerNorm(32)
        self.reduction = nn.Linear(32, 16, bias=False)
        self.head = nn.Linear(16, CLASSES)

    def merge(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        x = self.merge(self.embed(x))
        return self.head(self.reduction(self.norm(x)).mean((1, 2)))


MAP = (torch.randn(2, 4, 4, 5),)
MERGED = {"embed__weight": (4, 5), "norm__weight": (16,), "reduction__weight": (8, 16)}


@case(alone, MAP, **MERGED)
class MergedByStridedSlices(Merging):
    def merge(self, x: Tensor) -> Tensor:
        parts = [x[:, 0::2, 0::2, :], x[:, 1::2, 0::2, :], x[:, 0::2, 1::2, :], x[:, 1::2, 1::2]]
        return torch.cat(parts, -1)


@case(alone, MAP, **MERGED)
class MergedByReshape(Merging):
    def merge(self, x: Tensor) -> Tensor:
        b, h, w, c = x.shape
        x = x.reshape(b, h // 2, 2, w // 2, 2, c)
        return x.permute(0, 1, 3, 4, 2, 5).flatten(3)


@case(Tokens, (torch.randn(2, 16, 5),), block__qkv__weight=(36, 12), block__proj__weight=(12, 12))
class Windows(FusedAttention):
    """Shifted windows: roll, partition, attend, put back."""

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        x = torch.roll(x.view(b, 4, 4, c), shifts=(-1, -1), dims=(1, 2))
        x = x.view(b, 2, 2, 2, 2, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, c)
        qkv = self.qkv(x).reshape(x.shape[0], 4, 3, HEADS, c // HEADS).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(-1, 4, c)
        out = self.proj(out).view(-1, 2, 2, 2, 2, c).permute(0, 1, 3, 2, 4, 5)
        out = torch.roll(out.reshape(b, 4, 4, c), shifts=(1, 1), dims=(1, 2))
        return out.view(b, n, c)
