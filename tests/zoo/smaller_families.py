"""Smaller models of families whose smallest is large: the same code of the same parts, fewer and narrower.

`smaller_families:NAME` names one, as `timm:NAME` does the model itself, which slow tests check.
"""

from __future__ import annotations

import functools
from typing import Any

import timm
from torch import nn

__all__ = ["SMALLER"]

_NARROW: dict[str, Any] = {"depth": 2, "embed_dim": 192, "num_heads": 3}

# Options of timm's factory, and the share of parameters that is left at half of the channels.
SMALLER: dict[str, tuple[dict[str, Any], float]] = {
    "beit_base_patch16_224": (_NARROW, 0.323),
    "samvit_base_patch16_224": (_NARROW | {"depth": 3, "global_attn_indexes": (2,)}, 0.304),
    "qwen3_vit_88m": (_NARROW, 0.700),
    "gemma4_vit_167m": (_NARROW, 0.758),
    "deepseek_vit_412m": (_NARROW, 0.556),
    "naflexvit_base_patch16_parfac_gap": (_NARROW, 0.322),
    "vgg11": ({"mlp_ratio": 1 / 16}, 0.299),
}


def __getattr__(name: str) -> functools.partial[nn.Module]:
    if name not in SMALLER:
        raise AttributeError(name)
    return functools.partial(timm.create_model, name, **SMALLER[name][0])
