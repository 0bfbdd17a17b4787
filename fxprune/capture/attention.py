"""torch.nn's attention, which can't hold pruned heads, spelled out as plain, traceable code.

The weights keep their names.  https://arxiv.org/abs/1706.03762
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from fxprune.capture.transformers import (
    transformer_decoder,
    transformer_encoder,
    transformer_encoder_layer,
)

__all__ = ["DECOMPOSED", "DECOMPOSED_FUNCTIONS", "decompose_modules", "is_spelled_out"]


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
    swapped = not self.batch_first and query.dim() == 3
    if swapped:
        query, key, value = _swap(query, key, value)
    weight: Any = self.in_proj_weight
    if weight is None:
        weight = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
    dims = getattr(self, "dims", (self.head_dim, self.head_dim))  # where the weights say them: of our own
    widths = [self.num_heads * d for d in (dims[0], *dims)]  # each by itself: they need not be equal
    q, k, v = _projections(query, key, value, weight, self.in_proj_bias, widths)
    out, weights = _attend(
        q,
        k,
        v,
        heads=(self.num_heads, *dims),
        learned=(self.bias_k, self.bias_v),
        zeros=self.add_zero_attn,
        mask=attn_mask,
        padding=key_padding_mask,
        is_causal=is_causal,
        dropout=self.dropout if self.training else 0.0,
        need_weights=need_weights,
        average=average_attn_weights,
        scale=getattr(self, "scale", None),
    )
    out = self.out_proj(out)
    return (out.transpose(0, 1) if swapped else out), weights


def multi_head_attention_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim_to_check: int,
    num_heads: int,
    in_proj_weight: Tensor | None,
    in_proj_bias: Tensor | None,
    bias_k: Tensor | None,
    bias_v: Tensor | None,
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    training: bool = True,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    use_separate_proj_weight: bool = False,
    q_proj_weight: Tensor | None = None,
    k_proj_weight: Tensor | None = None,
    v_proj_weight: Tensor | None = None,
    static_k: Tensor | None = None,
    static_v: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """n b embed, m b kdim, m b vdim -> n b embed: the same as a function of its weights"""
    if static_k is not None or static_v is not None:
        raise NotImplementedError("static_k and static_v are not understood")
    swapped = query.dim() == 3
    if swapped:
        query, key, value = _swap(query, key, value)
    weight: Any = in_proj_weight
    if use_separate_proj_weight:
        weight = (q_proj_weight, k_proj_weight, v_proj_weight)
    q, k, v = _projections(query, key, value, weight, in_proj_bias)
    out, weights = _attend(
        q,
        k,
        v,
        heads=(num_heads, embed_dim_to_check // num_heads, embed_dim_to_check // num_heads),
        learned=(bias_k, bias_v),
        zeros=add_zero_attn,
        mask=attn_mask,
        padding=key_padding_mask,
        is_causal=is_causal,
        dropout=dropout_p if training else 0.0,
        need_weights=need_weights,
        average=average_attn_weights,
    )
    out = F.linear(out, out_proj_weight, out_proj_bias)
    return (out.transpose(0, 1) if swapped else out), weights


def _swap(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Transpose sequence-first to batch-first; one tensor stays one, so that `query is key` still tells."""
    q = query.transpose(0, 1)
    k = q if key is query else key.transpose(0, 1)
    return q, k, (k if value is key else value.transpose(0, 1))


def _projections(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    weight: Any,
    bias: Tensor | None,
    widths: list[int] | None = None,
) -> Any:
    """b n embed, b m kdim, b m vdim -> b n (h d), b m (h d), b m (h e); `weight` is one or three.

    widths: of the three that come of it, where they may differ.
    """
    if not isinstance(weight, tuple) and query is key and key is value:
        return _cut(F.linear(query, weight, bias), widths, -1)
    weights = weight if isinstance(weight, tuple) else _cut(weight, widths, 0)
    biases = (None, None, None) if bias is None else _cut(bias, widths, 0)
    return [F.linear(x, weights[i], biases[i]) for i, x in enumerate((query, key, value))]


def _cut(t: Tensor, widths: list[int] | None, dim: int) -> Any:
    return t.chunk(3, dim=dim) if widths is None else t.split(widths, dim=dim)


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    heads: tuple[int, int, int],
    learned: tuple[Tensor | None, Tensor | None],
    zeros: bool,
    mask: Tensor | None,
    padding: Tensor | None,
    is_causal: bool,
    dropout: float,
    need_weights: bool,
    average: bool,
    scale: float | None = None,
) -> tuple[Tensor, Tensor | None]:
    """b n (h d), b m (h d), b m (h e) -> b n (h e), and b n m or b h n m if the weights are needed

    A learned key and value, 1 1 (h d) and 1 1 (h e), and zeros may be attended to as well.
    """
    bias_k, bias_v = learned
    if bias_k is not None and bias_v is not None:
        k, v = (_joined(t, b) for t, b in ((k, bias_k), (v, bias_v)))
    n, d, e = heads
    q, k, v = (t.unflatten(-1, (n, w)).transpose(-3, -2) for t, w in ((q, d), (k, d), (v, e)))
    if zeros:
        k, v = F.pad(k, (0, 0, 0, 1)), F.pad(v, (0, 0, 0, 1))
    if is_causal and padding is None and not need_weights:
        mask = None  # the hint stands for it, in torch.nn as well
    mask = _merged_mask(mask, padding, n, q)
    added = (bias_k is not None) + zeros
    if mask is not None and added:
        mask = F.pad(mask, (0, added))
    if not need_weights:
        causal = is_causal and mask is None
        given: Any = {} if scale is None else {"scale": scale}
        out = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=causal, **given
        )
        return out.transpose(-3, -2).flatten(-2), None
    scores = (q * (d**-0.5 if scale is None else scale)) @ k.transpose(-2, -1)  # else too large for fp16
    weights = F.dropout(torch.softmax(scores if mask is None else scores + mask, dim=-1), dropout)
    out = (weights @ v).transpose(-3, -2).flatten(-2)
    return out, (weights.mean(dim=-3) if average else weights)


def _joined(t: Tensor, learned: Tensor) -> Tensor:
    """b m c, 1 1 c -> b (m 1) c, or without the batch"""
    return torch.cat([t, learned[0] if t.dim() == 2 else learned.expand(t.shape[0], 1, -1)], -2)


def _merged_mask(mask: Tensor | None, padding: Tensor | None, heads: int, q: Tensor) -> Tensor | None:
    """Merge both masks into one that is added to the scores: [batch or 1, heads or 1, n, m]."""
    merged = None if mask is None else _additive(mask, q)
    if merged is not None and mask is not None and mask.dim() == 3 and q.dim() == 4:
        merged = merged.unflatten(0, (-1, heads))
    if padding is None:
        return merged
    padded = _additive(padding, q)[..., None, None, :]
    return padded if merged is None else merged + padded


def _additive(mask: Tensor, q: Tensor) -> Tensor:
    if mask.dtype != torch.bool:
        if not torch.is_floating_point(mask):
            raise AssertionError("only bool and floating types of masks are supported")  # as torch.nn says
        return mask
    return torch.zeros_like(mask, dtype=q.dtype).masked_fill(mask, float("-inf"))


DECOMPOSED: dict[type[nn.Module], Callable[..., Any]] = {
    nn.MultiheadAttention: multi_head_attention,
    nn.TransformerEncoderLayer: transformer_encoder_layer,
    nn.TransformerEncoder: transformer_encoder,
    nn.TransformerDecoder: transformer_decoder,
}
DECOMPOSED_FUNCTIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    F.multi_head_attention_forward: multi_head_attention_forward,
}


def decompose_modules(model: nn.Module) -> None:
    """Replace, on this (copied) model, the `forward` of each module of a decomposed class."""
    for module in model.modules():
        forward = _decomposed(module)
        if forward is not None:
            module.forward = types.MethodType(forward, module)


def _decomposed(module: nn.Module) -> Callable[..., Any] | None:
    for cls, forward in DECOMPOSED.items():
        if isinstance(module, cls) and type(module).forward is cls.forward:
            return forward
    return None


def is_spelled_out(model: nn.Module, graph: fx.Graph) -> bool:
    """Does a capture of the model hold plain code in the place of torch.nn's attention?"""
    if any(_decomposed(module) is not None for module in model.modules()):
        return True
    return any(node.meta.get("decomposed") for node in graph.nodes)
