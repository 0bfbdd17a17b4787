"""kornia: transformers for images, parts of detectors and matchers, descriptors of patches."""

from __future__ import annotations

from typing import Any

from torch import nn

from field.row import Row, given, noise, row

__all__ = ["MODELS"]

IMAGE = noise(3, 64, 64)
PATCH = noise(1, 32, 32)
LOFTR: dict[str, Any] = {"d_model": 32, "d_ffn": 64, "nhead": 4, "layer_names": ["self", "cross"]}


def _segment_anything_encoder() -> nn.Module:
    from kornia.models.sam.architecture.image_encoder import ImageEncoderViT

    model = ImageEncoderViT(
        img_size=64,
        patch_size=16,
        embed_dim=32,
        depth=2,
        num_heads=4,
        out_chans=16,
        qkv_bias=True,
        use_rel_pos=True,
        window_size=2,
        global_attn_indexes=(1,),
    )
    return given(model, IMAGE)


def _rt_detr() -> nn.Module:
    from kornia.models.rt_detr import RTDETR, RTDETRConfig

    model = RTDETR.from_config(
        RTDETRConfig(
            "resnet18d",
            5,
            input_size=64,
            neck_hidden_dim=32,
            neck_dim_feedforward=64,
            head_hidden_dim=32,
            head_num_queries=10,
            head_num_decoder_layers=1,
        )
    )
    return given(model, IMAGE)


def _efficient_vit() -> nn.Module:
    from kornia.models.efficient_vit.backbone import EfficientViTBackbone

    model = EfficientViTBackbone(width_list=[8, 16, 32, 32, 64], depth_list=[1, 1, 1, 1, 1], dim=8)
    return given(model, IMAGE)


def _loftr_matcher() -> nn.Module:
    """Self and cross attention, linear, over the cells of two images."""
    from kornia.feature.loftr.loftr_module import LocalFeatureTransformer

    model = LocalFeatureTransformer(LOFTR | {"attention": "linear"})
    return given(model, noise(16, 32), noise(12, 32))


def _loftr_matcher_full() -> nn.Module:
    from kornia.feature.loftr.loftr_module import LocalFeatureTransformer

    model = LocalFeatureTransformer(LOFTR | {"attention": "full"})
    return given(model, noise(16, 32), noise(12, 32))


def _loftr_backbone() -> nn.Module:
    from kornia.feature.loftr.backbone import ResNetFPN_8_2

    return given(ResNetFPN_8_2({"initial_dim": 16, "block_dims": [16, 24, 32]}), noise(1, 64, 64))


MODELS: dict[str, Row] = {
    "kornia_vit": row(
        "kornia.models.vit.VisionTransformer",
        {"image_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 4},
        noise(3, 32, 32),
    ),
    "kornia_mobile_vit": row("kornia.models.vit_mobile.MobileViT", {"mode": "xxs"}, IMAGE),
    "kornia_tiny_vit": row(
        "kornia.models.tiny_vit.TinyViT",
        {"img_size": 64, "num_classes": 5, "embed_dims": (16, 32, 48, 64), "depths": (1, 1, 1, 1)}
        | {"num_heads": (1, 2, 3, 4), "window_sizes": (4, 4, 4, 2)},
        IMAGE,
    ),
    "kornia_efficient_vit": _efficient_vit,
    "kornia_sam_encoder": _segment_anything_encoder,
    "kornia_rt_detr": _rt_detr,
    "kornia_loftr_linear": _loftr_matcher,
    "kornia_loftr_full": _loftr_matcher_full,
    "kornia_loftr_backbone": _loftr_backbone,
    "kornia_hardnet": row("kornia.feature.HardNet", {"pretrained": False}, PATCH),
    "kornia_hynet": row("kornia.feature.HyNet", {"pretrained": False}, PATCH),
    "kornia_rrdbnet": row(
        "kornia.models.rrdbnet.RRDBNet",
        {"num_in_ch": 3, "num_out_ch": 3, "num_feat": 16, "num_block": 1, "num_grow_ch": 8},
        noise(3, 16, 16),
    ),
}
