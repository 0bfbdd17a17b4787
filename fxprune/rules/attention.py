"""Attention as one op."""

from __future__ import annotations

from fxprune.rules.axes import Product, atom
from fxprune.rules.elementwise import broadcast
from fxprune.rules.registry import Flow, Typed, rule


@rule("scaled_dot_product_attention")
def attention_axes(
    query: Typed,
    key: Typed,
    value: Typed,
    attn_mask: Typed | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Flow:
    """b h n d, b h m d, b h m e -> b h n e"""
    *q_batch, n, d = query.axes
    *k_batch, m, d_key = key.axes
    *v_batch, m_value, e = value.axes
    if enable_gqa:  # query heads are (key heads, share)
        shared = atom(q_batch[-1].size // k_batch[-1].size)
        k_batch[-1] = Product.of((k_batch[-1], shared))
        v_batch[-1] = Product.of((v_batch[-1], shared))
    batch, same = broadcast([tuple(q_batch), tuple(k_batch), tuple(v_batch)])
    same += [(d, d_key), (m, m_value)]
    if attn_mask is not None:
        _, masked = broadcast([(*batch, n, m), attn_mask.axes])
        same += masked
    reasons = [(m, "softmax over it")] + ([(n, "its order matters")] if is_causal else [])
    macs = [(*batch, n, m, d), (*batch, n, m, e)]
    return Flow(
        (*batch, n, e), same, reasons, reduced=[d], macs=macs, linear=_attention_law(len(batch), attn_mask)
    )


def _attention_law(ndim: int, mask: Typed | None) -> str:
    """Write the law of attention: linear in the values, and in what queries and keys are to one another."""
    before = " ".join(f"b{k}" for k in range(ndim))
    added = ""
    if mask is not None:
        added = ", " + (" ".join([*(f"b{k}" for k in range(ndim)), "n", "m"][ndim + 2 - mask.ndim :]) or "[]")
    return f"{before} n d, {before} m d, {before} m e{added} -> {before} n e / {before} n m"
