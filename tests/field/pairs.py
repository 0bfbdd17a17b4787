"""open_clip: image towers, text towers and both together."""

from __future__ import annotations

from typing import Any

from torch import nn

from field.row import Row, given, noise, row, tokens

__all__ = ["MODELS"]

IMAGE = noise(3, 32, 32)
TEXT = tokens(99, 12)
VIT: dict[str, Any] = {"image_size": 32, "patch_size": 8, "width": 48, "layers": 2}
TOWER: dict[str, Any] = VIT | {"heads": 4, "mlp_ratio": 2.0, "output_dim": 24}
WORDS: dict[str, Any] = {"context_length": 12, "vocab_size": 99, "width": 32, "heads": 4, "layers": 2}


def _clip(vision: dict[str, Any], text: dict[str, Any], **options: Any) -> nn.Module:
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    return given(CLIP(24, CLIPVisionCfg(**vision), CLIPTextCfg(**WORDS | text), **options), IMAGE, TEXT)


def _vit_pair() -> nn.Module:
    return _clip(VIT | {"head_width": 12}, {})


def _siglip_pair() -> nn.Module:
    """No causal mask, the last token, a bias on the logits."""
    return _clip(
        VIT | {"head_width": 12, "pool_type": "avg", "final_ln_after_pool": True},
        {"no_causal_mask": True, "proj_bias": True, "pool_type": "last"},
        init_logit_bias=-10.0,
    )


def _resnet_pair() -> nn.Module:
    return _clip(
        {"image_size": 32, "layers": (1, 1, 1, 1), "width": 8, "head_width": 16}, {}, quick_gelu=True
    )


def _timm_pair() -> nn.Module:
    return _clip({"image_size": 32, "timm_model_name": "resnet10t", "timm_proj": "linear"}, {})


def _coca() -> nn.Module:
    """A captioner: an attentional pooler of images, a decoder that reads them."""
    from open_clip.coca_model import CLIPTextCfg, CLIPVisionCfg, CoCa, MultimodalCfg

    model = CoCa(
        32,
        MultimodalCfg(context_length=12, vocab_size=99, width=32, heads=4, layers=1),
        CLIPTextCfg(**WORDS | {"embed_cls": True, "output_tokens": True}),
        CLIPVisionCfg(
            **VIT
            | {"head_width": 12, "attentional_pool": True, "attn_pooler_heads": 4}
            | {"attn_pooler_queries": 5, "output_tokens": True}
        ),
    )
    return given(model, IMAGE, TEXT)


MODELS: dict[str, Row] = {
    "open_clip_vit_tower": row("open_clip.transformer.VisionTransformer", TOWER, IMAGE),
    "open_clip_vit_pooled_by_queries": row(
        "open_clip.transformer.VisionTransformer",
        TOWER | {"attentional_pool": True, "attn_pooler_queries": 5, "attn_pooler_heads": 4},
        IMAGE,
    ),
    "open_clip_vit_scaled": row(
        "open_clip.transformer.VisionTransformer",
        TOWER | {"ls_init_value": 0.1, "pool_type": "avg", "pos_embed_type": "sin_cos_2d"},
        IMAGE,
    ),
    "open_clip_resnet_tower": row(
        "open_clip.modified_resnet.ModifiedResNet",
        {"layers": (1, 1, 1, 1), "output_dim": 24, "heads": 4, "image_size": 64, "width": 8},
        noise(3, 64, 64),
    ),
    "open_clip_text_tower": row("open_clip.transformer.TextTransformer", WORDS | {"output_dim": 24}, TEXT),
    "open_clip_vit_pair": _vit_pair,
    "open_clip_siglip_pair": _siglip_pair,
    "open_clip_resnet_pair": _resnet_pair,
    "open_clip_timm_pair": _timm_pair,
    "open_clip_coca": _coca,
}
