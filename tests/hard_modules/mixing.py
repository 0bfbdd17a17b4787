"""Heads and channels of several widths, shared by several queries, or mixed with each other."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hard_modules.case import CLASSES, DIM, EMBED, HEADS, TOKENS, alone, case, only, tokens
from hard_modules.layouts import Attention, FusedAttention, heads_first, heads_last

# ---------------------------------------------------------------- several widths


@case(block__q__weight=(6, 12), block__v__weight=(16, 12), block__proj__weight=(12, 16))
class KeysNarrowerThanValues(Attention):
    def __init__(self) -> None:
        super().__init__(key=3, value=8)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (heads_first(p(x)) for p in (self.q, self.k, self.v))
        return self.proj(heads_last((q @ k.mT * 3**-0.5).softmax(-1) @ v))


@case(block__q__weight=(12, 12), block__reduce__weight=(12, 12, 2))
class SpatialReduction(Attention):
    """PVT: keys and values of a strided convolution of the tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.reduce = nn.Conv1d(EMBED, EMBED, 2, 2)
        self.norm = nn.LayerNorm(EMBED)

    def forward(self, x: Tensor) -> Tensor:
        small = self.norm(self.reduce(x.transpose(1, 2)).transpose(1, 2))
        q, k, v = heads_first(self.q(x)), heads_first(self.k(small)), heads_first(self.v(small))
        return self.proj(heads_last(F.scaled_dot_product_attention(q, k, v)))


@case(
    alone,
    (torch.randn(2, 9, 5), torch.randn(2, 4, 5)),
    left__weight=(12, 5),
    right__weight=(8, 5),
    there__weight=(8, 12),
    head__weight=(CLASSES, 20),
)
class TwoStreams(nn.Module):
    """CrossViT: streams of different widths whose class tokens are exchanged, then concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(5, 24), nn.Linear(5, 16)
        self.there, self.back = nn.Linear(24, 16), nn.Linear(16, 24)
        self.head = nn.Linear(40, CLASSES)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        a, b = self.left(a), self.right(b)
        b = torch.cat((self.there(a[:, :1]), b[:, 1:]), dim=1).relu()
        a = torch.cat((self.back(b[:, 0:1]), a[:, 1:]), dim=1).relu()
        return self.head(torch.cat((a[:, 0], b[:, 0]), dim=-1))


@case(alone, (tokens(),), embed__weight=(12, 5), cls=(1, 1, 12), positions=(1, 11, 12))
class ClassAndDistillationTokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(5, EMBED)
        self.cls = nn.Parameter(torch.zeros(1, 1, EMBED))
        self.dist = nn.Parameter(torch.zeros(1, 1, EMBED))
        self.positions = nn.Parameter(torch.zeros(1, TOKENS + 2, EMBED))
        self.gamma = nn.Parameter(torch.zeros(EMBED))
        self.fc1, self.fc2 = nn.Linear(EMBED, 48), nn.Linear(48, EMBED)
        self.head, self.head_dist = nn.Linear(EMBED, CLASSES), nn.Linear(EMBED, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        b = x.shape[0]
        cls, dist = self.cls.expand(b, -1, -1), self.dist.expand(b, -1, -1)
        x = torch.cat((cls, dist, x), dim=1) + self.positions
        x = x + self.gamma * self.fc2(F.gelu(self.fc1(x)))
        return (self.head(x[:, 0]) + self.head_dist(x[:, 1])) / 2


@case(block__q__weight=(12, 24), block__queries=(24,), block__k__weight=(12, 12))
class LearnedQuery(Attention):
    """Attention pooling: one query, a parameter whose width only the query layer reads: no channel."""

    def __init__(self) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.zeros(EMBED))

    def forward(self, x: Tensor) -> Tensor:
        b = x.shape[0]
        q = self.q(self.queries).view(1, 1, HEADS, DIM).transpose(1, 2).expand(b, -1, -1, -1)
        k, v = heads_first(self.k(x)), heads_first(self.v(x))
        return self.proj(heads_last(F.scaled_dot_product_attention(q, k, v)))


# ---------------------------------------------------------------- heads and channels mixed


@case(block__q__weight=(12, 12), block__before__weight=(2, 2), block__after__weight=(2, 2))
class TalkingHeads(Attention):
    """CaiT: linear layers over the head dimension, before and after the softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.after = nn.Linear(HEADS, HEADS), nn.Linear(HEADS, HEADS)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (heads_first(p(x)) for p in (self.q, self.k, self.v))
        scores = self.before((q @ k.transpose(-2, -1)).permute(0, 2, 3, 1))
        weights = self.after(scores.softmax(dim=-2)).permute(0, 3, 1, 2)
        return self.proj(heads_last(weights @ v))


@case(block__q__weight=(12, 12), block__mix__weight=(2, 2, 1, 1))
class TalkingHeadsByConvolution(Attention):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(HEADS, HEADS, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (heads_first(p(x)) for p in (self.q, self.k, self.v))
        return self.proj(heads_last(self.mix(q @ k.transpose(-2, -1)).softmax(-1) @ v))


@case(block__qkv__weight=(36, 12), block__temperature=(2, 1, 1))
class CrossCovariance(FusedAttention):
    """XCiT: attention between channels, so that head dims are frozen and heads shrink."""

    def __init__(self) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(HEADS, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, HEADS, c // HEADS).permute(2, 0, 3, 4, 1)
        q, k, v = qkv.unbind(0)
        q, k = F.normalize(q, p=2.0, dim=-1), F.normalize(k, p=2.0, dim=-1)
        weights = (q @ k.transpose(-2, -1) * self.temperature).softmax(dim=-1)
        return self.proj((weights @ v).permute(0, 3, 1, 2).reshape(b, n, c))


@case(block__q__weight=(12, 12), block__q_norm__weight=(6,), block__k_norm__weight=(6,))
class NormsInsideHeads(Attention):
    """One norm for all heads: they must keep the same head dims."""

    def __init__(self) -> None:
        super().__init__()
        self.q_norm, self.k_norm = nn.LayerNorm(DIM), nn.LayerNorm(DIM)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (heads_first(p(x)) for p in (self.q, self.k, self.v))
        q, k = self.q_norm(q), self.k_norm(k)
        return self.proj(heads_last(F.scaled_dot_product_attention(q, k, v)))


@case(block__wq=(12, 2, 6), block__wo=(2, 6, 12))
class EinsumAttention(nn.Module):
    """JAX's layout: projections are three-dimensional."""

    def __init__(self) -> None:
        super().__init__()
        self.wq, self.wk, self.wv = (nn.Parameter(torch.zeros(EMBED, HEADS, DIM)) for _ in range(3))
        self.wo = nn.Parameter(torch.zeros(HEADS, DIM, EMBED))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (torch.einsum("bne,ehd->bnhd", x, w) for w in (self.wq, self.wk, self.wv))
        weights = torch.einsum("bqhd,bkhd->bhqk", q, k).softmax(dim=-1)
        out = torch.einsum("b h q k, b k h d -> b q h d", weights, v)
        return torch.einsum("...hd,hde->...e", out, self.wo)


@case(block__q__weight=(12, 12), block__proj__weight=(12, 12))
class LinearAttention(Attention):
    """No softmax: (k v) first, normalised by the sum of the keys."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (heads_first(p(x)) for p in (self.q, self.k, self.v))
        q, k = F.relu(q), F.relu(k)
        out = q @ (k.transpose(-1, -2) @ v)
        out = out / (q @ k.sum(dim=-2, keepdim=True).transpose(-1, -2) + 1e-4)
        return self.proj(heads_last(out))


# ---------------------------------------------------------------- grouped queries


class GroupedQueries(Attention):
    """4 query heads share 2 key heads."""

    def __init__(self) -> None:
        super().__init__(kv_heads=2)

    def repeat(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        q = heads_first(self.q(x))
        k, v = self.repeat(heads_first(self.k(x), 2)), self.repeat(heads_first(self.v(x), 2))
        return self.proj(heads_last(F.scaled_dot_product_attention(q, k, v)))


GROUPED = {
    "block__q__weight": (12, 12),
    "block__k__weight": (6, 12),
    "block__proj__weight": (12, 12),
}


@case(**GROUPED)
class GqaByRepeatInterleave(GroupedQueries):
    def repeat(self, x: Tensor) -> Tensor:
        return x.repeat_interleave(2, dim=1)


@case(**GROUPED)
class GqaByExpand(GroupedQueries):
    """Hugging Face's repeat_kv."""

    def repeat(self, x: Tensor) -> Tensor:
        b, h, n, d = x.shape
        return x[:, :, None, :, :].expand(b, h, 2, n, d).reshape(b, h * 2, n, d)


@case(**GROUPED)
class GqaByFlag(GroupedQueries):
    def forward(self, x: Tensor) -> Tensor:
        q, k, v = heads_first(self.q(x)), heads_first(self.k(x), 2), heads_first(self.v(x), 2)
        out = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        return self.proj(heads_last(out))


@case(block__q__weight=(12, 12), block__k__weight=(6, 12), block__v__weight=(6, 12))
class MultiQuery(Attention):
    """One key head for all queries: only the query's heads are counted."""

    def __init__(self) -> None:
        super().__init__(kv_heads=1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = heads_first(self.q(x)), self.k(x).unsqueeze(1), self.v(x).unsqueeze(1)
        return self.proj(heads_last(F.scaled_dot_product_attention(q, k, v)))


# ---------------------------------------------------------------- PyTorch's own attention


class Packed(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(EMBED, HEADS, **options)


PACKED = {"block__attn__in_proj_weight": (36, 12), "block__attn__out_proj__weight": (12, 12)}


@case(**PACKED)
class SelfAttention(Packed):
    def __init__(self) -> None:
        super().__init__(batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attn(x, x, x, need_weights=False)[0]


@case(**PACKED)
class SelfAttentionWithWeights(Packed):
    def __init__(self) -> None:
        super().__init__(batch_first=True, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out, weights = self.attn(x, x, x)
        return out + weights.sum(-1, keepdim=True)


@case(**PACKED)
class SelfAttentionSequenceFirst(Packed):
    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(0, 1)
        return self.attn(query=x, key=x, value=x)[0].transpose(0, 1)


@case(**PACKED)
class SelfAttentionMasked(Packed):
    def __init__(self) -> None:
        super().__init__(batch_first=True)
        mask = torch.ones(TOKENS, TOKENS).triu(1).bool()
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.attn(x, x, x, attn_mask=self.mask, need_weights=False)[0]


@case(**PACKED, block__attn__bias_k=(1, 1, 12))
class SelfAttentionWithLearnedKey(Packed):
    def __init__(self) -> None:
        super().__init__(add_bias_kv=True)
        mask = torch.ones(TOKENS, TOKENS).triu(1).bool()
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(0, 1)
        return self.attn(x, x, x, attn_mask=self.mask)[0].transpose(0, 1)


@case(**PACKED)
class SelfAttentionToZeros(Packed):
    def __init__(self) -> None:
        super().__init__(batch_first=True, add_zero_attn=True)

    def forward(self, x: Tensor) -> Tensor:
        out, weights = self.attn(x, x, x, average_attn_weights=False)
        return out + weights.sum((1, 3)).unsqueeze(-1)


@case(**PACKED)
class SelfAttentionOverTheBatch(Packed):
    """Without a batch: all tokens of all samples meet."""

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(0, 1)
        return self.attn(tokens, tokens, tokens, need_weights=False)[0].unflatten(0, (-1, TOKENS))


@case(captures=only("symbolic"), **PACKED)
class SelfAttentionByFunction(Packed):
    """Under torch.export queries and values have one head dim: the function's own code ties them."""

    def forward(self, x: Tensor) -> Tensor:
        a, x = self.attn, x.transpose(0, 1)
        packed = (a.in_proj_weight, a.in_proj_bias, None, None, False, 0.1)
        output = (a.out_proj.weight, a.out_proj.bias)
        sizes = (x.shape[-1], HEADS)
        return F.multi_head_attention_forward(x, x, x, *sizes, *packed, *output, self.training)[0].transpose(
            0, 1
        )


@case(block__q__weight=(12, 12), block__k__weight=(12, 12), block__proj__weight=(12, 12))
class PooledByFunction(Attention):
    """CLIP's: the mean token asks all of them, through layers of their own."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(0, 1)
        out, _ = F.multi_head_attention_forward(
            query=x.mean(dim=0, keepdim=True),
            key=x,
            value=x,
            embed_dim_to_check=x.shape[-1],
            num_heads=HEADS,
            in_proj_weight=None,
            in_proj_bias=torch.cat([self.q.bias, self.k.bias, self.v.bias]),
            bias_k=None,
            bias_v=None,
            add_zero_attn=False,
            dropout_p=0,
            out_proj_weight=self.proj.weight,
            out_proj_bias=self.proj.bias,
            training=self.training,
            need_weights=False,
            use_separate_proj_weight=True,
            q_proj_weight=self.q.weight,
            k_proj_weight=self.k.weight,
            v_proj_weight=self.v.weight,
        )
        return out.transpose(0, 1).expand(-1, TOKENS, -1)


@case(block__attn__in_proj_weight=(36, 12), block__context__weight=(12, 12))
class CrossAttention(Packed):
    def __init__(self) -> None:
        super().__init__(batch_first=True)
        self.context = nn.Linear(EMBED, EMBED)

    def forward(self, x: Tensor) -> Tensor:
        context = self.context(x[:, ::2])
        return self.attn(x, context, context, need_weights=False)[0]


@case(block__attn__q_proj_weight=(12, 12), block__attn__k_proj_weight=(12, 8))
class CrossAttentionOfOtherWidths(Packed):
    def __init__(self) -> None:
        super().__init__(batch_first=True, kdim=16, vdim=10)
        self.key, self.value = nn.Linear(EMBED, 16), nn.Linear(EMBED, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.attn(x, self.key(x), self.value(x))[0]


def layer(**options: Any) -> nn.TransformerEncoderLayer:
    return nn.TransformerEncoderLayer(EMBED, HEADS, 40, batch_first=True, **options)


ENCODER = {
    "block__encoder__layers__1__self_attn__in_proj_weight": (36, 12),
    "block__encoder__layers__0__linear1__weight": (20, 12),
    "block__encoder__layers__1__norm2__bias": (12,),
}


class Encoder(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoder(layer(**options), 2, enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.encoder(x)


@case(**ENCODER)
class PreNormEncoder(Encoder):
    def __init__(self) -> None:
        super().__init__(norm_first=True, activation="gelu")


@case(**ENCODER)
class PostNormEncoder(Encoder):
    pass
