"""Prune timm's ViTs by Torch-Pruning, after its own examples/transformers/prune_timm_vit.py."""

import warnings
from typing import Any

import torch_pruning as tp
from timm.layers import Attention
from torch import Tensor, nn

__all__ = ["restore_heads", "vit_pruner"]


def vit_pruner(model: nn.Module, image: Tensor, **options: Any) -> tp.pruner.MetaPruner:
    """Return a pruner that knows the heads of a model, which it changes; `options` are the pruner's own."""
    for attention in _attentions(model):
        attention.fused_attn = False
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Unwrapped parameters detected")
        return tp.pruner.MetaPruner(
            model,
            image,
            num_heads={attention.qkv: attention.num_heads for attention in _attentions(model)},
            # The defaults are shared between calls, and would keep every earlier model alive.
            in_channel_groups={},
            out_channel_groups={},
            **options,
        )


def restore_heads(model: nn.Module, pruner: tp.pruner.MetaPruner) -> None:
    """Write the heads that are left into a model's attentions, after a step."""
    for attention in _attentions(model):
        attention.num_heads = pruner.num_heads[attention.qkv]
        attention.attn_dim = attention.qkv.out_features // 3
        attention.head_dim = attention.attn_dim // attention.num_heads


def _attentions(model: nn.Module) -> list[Attention]:
    return [module for module in model.modules() if isinstance(module, Attention)]
