"""torch.nn's attention, which knows one width alone, for a stream, queries and values of three.

A ranking of all channels gives them widths of their own.  The weights keep their names, and say the widths.
"""

from __future__ import annotations

from torch import Tensor, nn

from fxprune.capture.attention import multi_head_attention

__all__ = ["MultiheadAttention", "hold_widths"]


class MultiheadAttention(nn.MultiheadAttention):
    """torch.nn's, whose heads are as wide as its weights say, whatever the width of what comes in.

    head_dim: what scores are scaled by: of heads that lost channels it may be that of the original.
    """

    @property
    def embed_dim(self) -> int:
        """The width of what queries are computed from."""
        return _embed_dim(self)

    @property
    def dims(self) -> tuple[int, int]:
        """The widths of one head's queries and keys, and of its values."""
        queries, values = _inner(self)
        return queries // self.num_heads, values // self.num_heads

    @property
    def scale(self) -> float:
        """What the products of queries and keys are multiplied by."""
        return float(self.head_dim**-0.5)

    def forward(
        self,
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
        if is_causal and attn_mask is None:
            raise RuntimeError("is_causal is a hint: attn_mask has to say the same")  # as torch.nn's asks
        masks = key_padding_mask, need_weights, attn_mask, average_attn_weights, is_causal
        return multi_head_attention(self, query, key, value, *masks)


def hold_widths(model: nn.Module) -> None:
    """Let torch.nn's attention inside a model hold the widths of its weights, where its own code can't.

    Its encoder has a fused path and one for nested tensors, which cut all by one width as well: they are
    not taken then.
    """
    for module in model.modules():
        if type(module) is nn.MultiheadAttention and not _is_even(module):
            module.__class__ = MultiheadAttention
            module._qkv_same_embed_dim = False
    for module in model.modules():
        uneven = any(isinstance(inside, MultiheadAttention) for inside in module.modules())
        if isinstance(module, nn.TransformerEncoder) and uneven:
            module.use_nested_tensor = False


def _is_even(module: nn.MultiheadAttention) -> bool:
    """Is everything in it as wide as what queries are computed from?"""
    embed = _embed_dim(module)
    return _inner(module) == (embed, embed)


def _embed_dim(module: nn.MultiheadAttention) -> int:
    packed = _held(module, "in_proj_weight")
    return _width(module, "q_proj_weight" if packed is None else "in_proj_weight", 1)


def _inner(module: nn.MultiheadAttention) -> tuple[int, int]:
    """Return the widths of all heads' queries, and of all heads' values."""
    values = _width(module.out_proj, "weight", 1)
    if _held(module, "in_proj_weight") is None:
        return _width(module, "q_proj_weight", 0), values
    return (_width(module, "in_proj_weight", 0) - values) // 2, values


def _width(module: nn.Module, weight: str, dim: int) -> int:
    held = _held(module, weight)
    assert held is not None
    return held.shape[dim]


def _held(module: nn.Module, weight: str) -> Tensor | None:
    """Return a weight itself, also while a trace goes on; of a replica, what stands for it."""
    held: Tensor | None = module._parameters.get(weight)
    return getattr(module, weight, None) if held is None else held
