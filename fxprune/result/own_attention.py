"""torch.nn's attention, which knows one width alone, for a stream, queries and values of three.

A ranking of all channels gives them widths of their own.  The weights keep their names, and say the widths.
"""

from __future__ import annotations

import copy
import traceback
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from fxprune.capture.attention import multi_head_attention
from fxprune.errors import first_line

__all__ = ["MultiheadAttention", "hold_widths", "widths_held"]


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
        _check_masks(self, query, key, attn_mask, key_padding_mask)
        masks = key_padding_mask, need_weights, attn_mask, average_attn_weights, is_causal
        return multi_head_attention(self, query, key, value, *masks)

    def _reset_parameters(self) -> None:
        """Draw the weights anew, as torch.nn does, at the widths that they have."""
        for name in ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"):
            held = _held(self, name)
            if held is not None:
                nn.init.xavier_uniform_(held)
        if self.in_proj_bias is not None:
            nn.init.zeros_(self.in_proj_bias)
            nn.init.zeros_(self.out_proj.bias)
        for learned in (self.bias_k, self.bias_v):
            if learned is not None:
                nn.init.xavier_normal_(learned)


def _check_masks(
    module: nn.MultiheadAttention, query: Tensor, key: Tensor, mask: Tensor | None, padding: Tensor | None
) -> None:
    """Raise what torch.nn's raises for a mask of another shape, which would be broadcast."""
    is_batched, place = query.dim() == 3, 1 if module.batch_first else 0
    n, m, batch = query.shape[0], key.shape[0], 1
    if is_batched:
        n, m, batch = query.shape[place], key.shape[place], query.shape[1 - place]
    if mask is not None:
        wanted: tuple[int, ...] = (n, m) if mask.dim() == 2 else (batch * module.num_heads, n, m)
        if tuple(mask.shape) != wanted:
            raise RuntimeError(f"the shape of attn_mask is {tuple(mask.shape)}, but should be {wanted}")
    if padding is not None:
        wanted = (batch, m) if is_batched else (m,)
        if tuple(padding.shape) != wanted:
            raise AssertionError(f"expected key_padding_mask of {wanted}, but got {tuple(padding.shape)}")


def widths_held(model: nn.Module) -> Iterator[tuple[str, str]]:
    """List the modules inside a model that hold widths of their own, each with what torch.nn's code says."""
    for path, module in model.named_modules():
        if type(module) is MultiheadAttention:
            queries, values = _inner(module)
            said = f"widths of {_embed_dim(module)} (stream), {queries} (queries, keys) and {values} (values)"
            yield path, f"{said}: {_said_by_torchs(module)}"


def _said_by_torchs(module: MultiheadAttention) -> str:
    """Run torch.nn's own code on the weights, and return what it says, with the line."""
    stock: nn.MultiheadAttention = copy.copy(module)
    stock.__class__, stock.training = nn.MultiheadAttention, False
    weights = ("q_proj_weight", "k_proj_weight", "v_proj_weight")
    packed = _held(module, "in_proj_weight")
    stock._qkv_same_embed_dim = packed is not None
    given = [(packed if packed is not None else _held(module, name)) for name in weights]
    try:
        with torch.no_grad():
            q, k, v = (w.new_zeros(1, 1, w.shape[1]) for w in given if w is not None)
            stock.forward(q, k, v, need_weights=False)  # without the user's hooks
    except Exception as error:  # whatever it finds first
        at = traceback.extract_tb(error.__traceback__)[-1]
        return f"{first_line(error)} at {'/'.join(Path(at.filename).parts[-3:])}:{at.lineno}"
    return "torch.nn's knows one"


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
