"""Library modules whose own class can't hold pruned heads, spelled out as plain, traceable code.

The weights keep their names.  https://arxiv.org/abs/1706.03762
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["OPENED", "open_modules"]


def multi_head_attention(
    self: nn.MultiheadAttention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """b n embed, b m kdim, b m vdim -> b n embed (n b embed, ... unless batch_first)"""
    if self.bias_k is not None or self.add_zero_attn:
        raise NotImplementedError("bias_k and add_zero_attn are not understood")
    if not self.batch_first:
        query, key, value = _swap(query, key, value)
    q, k, v = _projections(self, query, key, value)
    q, k, v = (t.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2) for t in (q, k, v))
    mask = _merged_mask(attn_mask, key_padding_mask, self.num_heads, q)
    dropout = self.dropout if self.training else 0.0
    weights = None
    if need_weights:
        scores = q @ k.transpose(-2, -1) * self.head_dim**-0.5
        weights = torch.softmax(scores if mask is None else scores + mask, dim=-1)
        weights = F.dropout(weights, dropout)
        out = weights @ v
        weights = weights.mean(dim=1) if average_attn_weights else weights
    else:
        out = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=is_causal and mask is None
        )
    out = self.out_proj(out.transpose(1, 2).flatten(-2))
    return (out if self.batch_first else out.transpose(0, 1)), weights


def _swap(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sequence-first to batch-first; one tensor stays one tensor, so that `query is key` still tells."""
    q = query.transpose(0, 1)
    k = q if key is query else key.transpose(0, 1)
    return q, k, (k if value is key else value.transpose(0, 1))


def _projections(self: nn.MultiheadAttention, query: Tensor, key: Tensor, value: Tensor) -> Any:
    bias = self.in_proj_bias
    if self._qkv_same_embed_dim and query is key and key is value:
        return F.linear(query, self.in_proj_weight, bias).chunk(3, dim=-1)
    if self._qkv_same_embed_dim:
        weights = self.in_proj_weight.chunk(3, dim=0)
    else:
        weights = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
    biases = (None, None, None) if bias is None else bias.chunk(3, dim=0)
    return [F.linear(x, weights[i], biases[i]) for i, x in enumerate((query, key, value))]


def _merged_mask(mask: Tensor | None, padding: Tensor | None, heads: int, q: Tensor) -> Tensor | None:
    """Both masks as one that is added to the scores: [batch or 1, heads or 1, n, m]."""
    merged = None if mask is None else _additive(mask, q)
    if merged is not None and mask is not None and mask.dim() == 3:
        merged = merged.unflatten(0, (-1, heads))
    if padding is None:
        return merged
    padded = _additive(padding, q)[:, None, None, :]
    return padded if merged is None else merged + padded


def _additive(mask: Tensor, q: Tensor) -> Tensor:
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=q.dtype).masked_fill(mask, float("-inf"))


def transformer_encoder_layer(
    self: nn.TransformerEncoderLayer,
    src: Tensor,
    src_mask: Tensor | None = None,
    src_key_padding_mask: Tensor | None = None,
    is_causal: bool = False,
) -> Tensor:
    """b n embed -> b n embed, without the fused inference path"""

    def attend(x: Tensor) -> Tensor:
        out, _ = self.self_attn(
            x,
            x,
            x,
            attn_mask=src_mask,
            key_padding_mask=src_key_padding_mask,
            need_weights=False,
            is_causal=is_causal,
        )
        return self.dropout1(out)

    def feed_forward(x: Tensor) -> Tensor:
        return self.dropout2(self.linear2(self.dropout(self.activation(self.linear1(x)))))

    if self.norm_first:
        x = src + attend(self.norm1(src))
        return x + feed_forward(self.norm2(x))
    x = self.norm1(src + attend(src))
    return self.norm2(x + feed_forward(x))


def transformer_encoder(
    self: nn.TransformerEncoder,
    src: Tensor,
    mask: Tensor | None = None,
    src_key_padding_mask: Tensor | None = None,
    is_causal: bool | None = None,
) -> Tensor:
    """b n embed -> b n embed, without nested tensors"""
    for layer in self.layers:
        src = layer(src, src_mask=mask, src_key_padding_mask=src_key_padding_mask, is_causal=bool(is_causal))
    return src if self.norm is None else self.norm(src)


OPENED: dict[type[nn.Module], Callable[..., Any]] = {
    nn.MultiheadAttention: multi_head_attention,
    nn.TransformerEncoderLayer: transformer_encoder_layer,
    nn.TransformerEncoder: transformer_encoder,
}


def open_modules(model: nn.Module) -> None:
    """Replace, on this (copied) model, the `forward` of each module of an opened class."""
    for module in model.modules():
        for cls, forward in OPENED.items():
            if isinstance(module, cls) and type(module).forward is cls.forward:
                module.forward = types.MethodType(forward, module)
