"""Attention scales, shapes spelled by shapes, and every layout of a fused qkv."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from hard_modules.case import CLASSES, DIM, EMBED, HEADS, case

# ---------------------------------------------------------------- scales and shapes


class Attention(nn.Module):
    """Projections to and from 4 heads of 6; how they are used is the subclass's."""

    def __init__(self, key: int = DIM, value: int = DIM, kv_heads: int = HEADS) -> None:
        super().__init__()
        self.q = nn.Linear(EMBED, HEADS * key)
        self.k = nn.Linear(EMBED, kv_heads * key)
        self.v = nn.Linear(EMBED, kv_heads * value)
        self.proj = nn.Linear(HEADS * value, EMBED)


def heads_first(x: Tensor, heads: int = HEADS) -> Tensor:
    """b n (h d) -> b h n d"""
    b, n, c = x.shape
    return x.reshape(b, n, heads, c // heads).transpose(1, 2)


def heads_last(x: Tensor) -> Tensor:
    """b h n d -> b n (h d)"""
    return x.transpose(1, 2).flatten(2)


@case(block__q__weight=(12, 12), block__proj__weight=(12, 12), head__weight=(CLASSES, 12))
class SdpaDefaultScale(Attention):
    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (heads_first(p(x)) for p in (self.q, self.k, self.v))
        return self.proj(heads_last(F.scaled_dot_product_attention(q, k, v)))


@case(block__q__weight=(12, 12), block__proj__weight=(12, 12))
class SdpaGivenScale(Attention):
    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (heads_first(p(x)) for p in (self.q, self.k, self.v))
        return self.proj(heads_last(F.scaled_dot_product_attention(q, k, v, scale=0.7)))


@case(block__q__weight=(12, 12), block__proj__weight=(12, 12))
class ScaleFromShape(Attention):
    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (heads_first(p(x)) for p in (self.q, self.k, self.v))
        scores = (q @ k.transpose(-2, -1)) * q.shape[-1] ** -0.5
        return self.proj(heads_last(scores.softmax(-1) @ v))


@case(block__q__weight=(12, 12), block__proj__weight=(12, 12))
class ScaleFromWidth(Attention):
    """The scale is computed from the width of a tensor that loses heads."""

    def forward(self, x: Tensor) -> Tensor:
        queries = self.q(x)
        scale = (queries.size(-1) // HEADS) ** -0.5
        q, k, v = heads_first(queries), heads_first(self.k(x)), heads_first(self.v(x))
        return self.proj(heads_last((q * scale @ k.mT).softmax(dim=-1) @ v))


@case(block__q__weight=(12, 12), block__proj__weight=(12, 12))
class ScaleBySqrt(Attention):
    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (heads_first(p(x)) for p in (self.q, self.k, self.v))
        scores = torch.matmul(q, k.transpose(-1, -2)) / math.sqrt(q.size(-1))
        return self.proj(heads_last(F.softmax(scores, dim=-1).matmul(v)))


class FusedAttention(nn.Module):
    def __init__(self, rows: int = 3 * EMBED, width: int = EMBED) -> None:
        super().__init__()
        self.qkv = nn.Linear(EMBED, rows)
        self.proj = nn.Linear(width, EMBED)


@case(block__qkv__weight=(36, 12), block__proj__weight=(12, 12))
class ReshapedByTheResidualsShape(FusedAttention):
    """`out.reshape(B, N, C)`: C is the residual width, the tensor is heads x head_dim wide."""

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, HEADS, c // HEADS).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        out = ((q @ k.transpose(-2, -1)) * DIM**-0.5).softmax(-1) @ v
        return self.proj(out.transpose(1, 2).reshape(b, n, c))


@case(block__q__weight=(12, 12), block__proj__weight=(12, 12))
class ReshapedByStarredShape(Attention):
    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (p(x).view(*x.shape[:-1], HEADS, -1).transpose(1, 2) for p in (self.q, self.k, self.v))
        out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        return self.proj(out.reshape(*out.shape[:2], -1).contiguous())


@case(block__q__weight=(12, 12), block__proj__weight=(12, 12))
class ReshapedByAnAddedShape(Attention):
    """A tuple of sizes is put together at run time; what it ends with is -1."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (p(x).reshape(x.shape[0], -1, HEADS, DIM).transpose(1, 2) for p in (self.q, self.k, self.v))
        out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        return self.proj(out.reshape(x.shape[:-1] + (-1,)))  # noqa: RUF005


@case(block__q__weight=(12, 12), block__proj__weight=(12, 12))
class BatchAndHeadsMerged(Attention):
    """fairseq's layout: n (b h) d."""

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = (
            p(x.transpose(0, 1)).contiguous().view(n, b * HEADS, c // HEADS).transpose(0, 1)
            for p in (self.q, self.k, self.v)
        )
        out = torch.bmm(torch.softmax(torch.bmm(q, k.transpose(1, 2)), -1), v)
        return self.proj(out.transpose(0, 1).reshape(n, b, c)).transpose(0, 1)


# ---------------------------------------------------------------- fused qkv


@case(block__qkv__weight=(36, 12), block__proj__weight=(12, 12))
class QkvThenHeadsThenDim(FusedAttention):
    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, HEADS, DIM).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2])
        return self.proj(out.transpose(1, 2).reshape(b, n, EMBED))


@case(block__qkv__weight=(36, 12), block__proj__weight=(12, 12))
class HeadsThenQkvThenDim(FusedAttention):
    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = self.qkv(x).view(b, n, HEADS, 3 * DIM).chunk(3, dim=-1)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        out = F.scaled_dot_product_attention(q, k, v)
        return self.proj(out.transpose(1, 2).reshape(b, n, EMBED))


@case(block__qkv__weight=(36, 12), block__proj__weight=(12, 12))
class QkvByChunk(FusedAttention):
    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        q, k, v = heads_first(q), heads_first(k), heads_first(v)
        return self.proj(heads_last(F.scaled_dot_product_attention(q, k, v)))


@case(block__qkv__weight=(36, 12), block__proj__weight=(12, 12))
class QkvBySplit(FusedAttention):
    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).split(EMBED, dim=2)
        q, k, v = heads_first(q), heads_first(k), heads_first(v)
        return self.proj(heads_last(F.scaled_dot_product_attention(q, k, v)))


@case(block__qkv__weight=(36, 12), block__proj__weight=(12, 12))
class QkvByTensorSplit(FusedAttention):
    def forward(self, x: Tensor) -> Tensor:
        parts = torch.tensor_split(self.qkv(x), (EMBED, 2 * EMBED), dim=-1)
        q, k, v = heads_first(parts[0]), heads_first(parts[1]), heads_first(parts[2])
        return self.proj(heads_last(F.scaled_dot_product_attention(q, k, v)))


@case(block__qkv__weight=(36, 12), block__proj__weight=(12, 12))
class QkvBySlices(FusedAttention):
    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x)
        q, k, v = qkv[..., :EMBED], qkv[..., EMBED : 2 * EMBED], qkv[:, :, -EMBED:]
        q, k, v = heads_first(q), heads_first(k), heads_first(v)
        return self.proj(heads_last(F.scaled_dot_product_attention(q, k, v)))


@case(block__qkv__weight=(36, 12), block__proj__weight=(12, 12))
class QkvByNarrow(FusedAttention):
    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x)
        q, k, v = (qkv.narrow(-1, i * EMBED, EMBED) for i in range(3))
        q, k, v = heads_first(q), heads_first(k), heads_first(v)
        return self.proj(heads_last(F.scaled_dot_product_attention(q, k, v)))


@case(block__qkv__weight=(36, 12), block__proj__weight=(12, 12))
class QkvBySlicingTheWeight(FusedAttention):
    def forward(self, x: Tensor) -> Tensor:
        w, b = self.qkv.weight, self.qkv.bias
        q = F.linear(x, w[:EMBED], b[:EMBED])
        k, v = F.linear(x, w[EMBED:], b[EMBED:]).chunk(2, -1)
        q, k, v = heads_first(q), heads_first(k), heads_first(v)
        return self.proj(heads_last(F.scaled_dot_product_attention(q, k, v)))


class LeViT(FusedAttention):
    """Rows are (heads, [key | key | value]) with values twice as wide as keys."""

    def __init__(self) -> None:
        super().__init__(rows=HEADS * (3 + 3 + 6), width=HEADS * 6)


@case(block__qkv__weight=(24, 12), block__qkv__bias=(24,), block__proj__weight=(12, 12))
class LeViTLayout(LeViT):
    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = self.qkv(x).view(b, n, HEADS, -1).split([3, 3, 6], dim=3)
        q, k, v = q.permute(0, 2, 1, 3), k.permute(0, 2, 3, 1), v.permute(0, 2, 1, 3)
        out = ((q @ k) * 3**-0.5).softmax(dim=-1) @ v
        return self.proj(F.hardswish(out.transpose(1, 2).reshape(b, n, HEADS * 6)))


@case(block__qkv__weight=(36, 12), block__proj__weight=(12, 12))
class QkvByEinops(FusedAttention):
    def forward(self, x: Tensor) -> Tensor:
        q, k, v = rearrange(self.qkv(x), "b n (three h d) -> three b h n d", three=3, h=HEADS)
        out = torch.einsum("b h i d, b h j d -> b h i j", q, k).softmax(-1) @ v
        return self.proj(rearrange(out, "b h n d -> b n (h d)"))


# ---------------------------------------------------------------- concatenated biases


class ConcatenatedBias(nn.Module):
    """BEiT, Swin v2: three biases, of which the key's is a buffer of zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(EMBED, 3 * EMBED, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(EMBED))
        self.register_buffer("k_bias", torch.zeros(EMBED), persistent=False)
        self.v_bias = nn.Parameter(torch.zeros(EMBED))
        self.proj = nn.Linear(EMBED, EMBED)

    def attend(self, x: Tensor, bias: Tensor) -> Tensor:
        b, n, _ = x.shape
        qkv = F.linear(input=x, weight=self.qkv.weight, bias=bias)
        q, k, v = qkv.reshape(b, n, 3, HEADS, -1).permute(2, 0, 3, 1, 4).unbind(0)
        out = F.scaled_dot_product_attention(q, k, v)
        return self.proj(out.transpose(1, 2).reshape(b, n, -1))


@case(block__qkv__weight=(36, 12), block__q_bias=(12,), block__v_bias=(12,))
class ZeroKeyBias(ConcatenatedBias):
    def forward(self, x: Tensor) -> Tensor:
        return self.attend(x, torch.cat((self.q_bias, self.k_bias, self.v_bias)))


@case(block__qkv__weight=(36, 12), block__q_bias=(12,), block__v_bias=(12,))
class ZerosLikeKeyBias(ConcatenatedBias):
    def forward(self, x: Tensor) -> Tensor:
        zeros = torch.zeros_like(self.v_bias, requires_grad=False)
        return self.attend(x, torch.cat([self.q_bias, zeros, self.v_bias]))


@case(block__qkv__weight=(36, 12), block__qkv__bias=(36,))
class BiasZeroedInPlace(FusedAttention):
    """`bias[a:b].zero_()` on a copy of a bias, as Swin v2 in torchvision does."""

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        bias = self.qkv.bias.clone()
        bias[EMBED : 2 * EMBED].zero_()
        qkv = F.linear(x, self.qkv.weight, bias).reshape(b, n, 3, HEADS, DIM)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        out = (q @ k.transpose(-2, -1)).softmax(-1) @ v
        return self.proj(out.transpose(1, 2).reshape(b, n, EMBED))
