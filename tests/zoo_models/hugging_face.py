"""Vision models of transformers, from small configurations with random weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import transformers
from torch import nn

__all__ = ["MODELS"]


def _build(config: str, model: str, options: dict[str, Any]) -> nn.Module:
    return getattr(transformers, model)(getattr(transformers, config)(**options)).eval()


VIT: dict[str, Any] = {"image_size": 32, "patch_size": 8, "hidden_size": 48, "num_hidden_layers": 2}
VIT |= {"num_attention_heads": 4, "intermediate_size": 96}
CLASSES: dict[str, Any] = {"num_labels": 10}
WINDOWS: dict[str, Any] = {"image_size": 64, "embed_dim": 24, "depths": [2, 2], "num_heads": [2, 4]}
WINDOWS |= {"window_size": 4}
PYRAMID: dict[str, Any] = {"hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 1, 1]}
PYRAMID |= {"num_attention_heads": [1, 2, 4, 8]}
SEGFORMER = PYRAMID | {"decoder_hidden_size": 32}
CONVNEXT: dict[str, Any] = {"image_size": 64, "hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 2, 1]}
MOBILEVIT: dict[str, Any] = {"image_size": 64, "hidden_sizes": [24, 32, 40], "num_attention_heads": 4}
MOBILEVIT |= {"neck_hidden_sizes": [8, 16, 24, 32, 40, 48, 56]}
LEVIT: dict[str, Any] = {"image_size": 64, "hidden_sizes": [16, 32, 48], "num_attention_heads": [2, 4, 6]}
LEVIT |= {"key_dim": [8, 8, 8], "depths": [1, 1, 1]}
HIERA: dict[str, Any] = {"image_size": [64, 64], "embed_dim": 16, "depths": [1, 1, 2, 1]}
HIERA |= {"num_heads": [1, 2, 4, 8]}
MAE = VIT | {"decoder_hidden_size": 32, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 4}
MAE |= {"decoder_intermediate_size": 64}
FEATURES: dict[str, Any] = {"out_features": ["stage1", "stage2"]}
CONVNET: dict[str, Any] = {"embedding_size": 16, "hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 1, 1]}


def _vision(config: str, options: dict[str, Any]) -> dict[str, Any]:
    """The part of a two-tower configuration that sees images, beside a small text tower."""
    text = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    return {"vision_config": options, "text_config": text, **CLASSES}


def _resnet() -> Any:
    return transformers.ResNetConfig(**CONVNET, out_features=["stage4"])


def _detr() -> nn.Module:
    """Convolutions, an encoder, a decoder with learned queries."""
    config = transformers.DetrConfig(
        backbone_config=_resnet(),
        use_timm_backbone=False,
        backbone=None,
        use_pretrained_backbone=False,
        d_model=32,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        num_queries=5,
        num_labels=10,
    )
    return transformers.DetrForObjectDetection(config).eval()


def _detr_backbone() -> nn.Module:
    return transformers.AutoBackbone.from_config(_resnet()).eval()


def _dpt(model: str) -> nn.Module:
    config = transformers.DPTConfig(
        **VIT | {"num_hidden_layers": 4},
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[16, 32, 48, 64],
        fusion_hidden_size=32,
        reassemble_factors=[4, 2, 1, 0.5],
        num_labels=10,
    )
    return getattr(transformers, model)(config).eval()


ROWS: dict[str, tuple[str, str, dict[str, Any]]] = {
    # plain transformers
    "vit": ("ViTConfig", "ViTForImageClassification", VIT | CLASSES),
    "vit_model": ("ViTConfig", "ViTModel", VIT),
    "vit_masked": ("ViTConfig", "ViTForMaskedImageModeling", VIT | {"encoder_stride": 8}),
    "vit_msn": ("ViTMSNConfig", "ViTMSNForImageClassification", VIT | CLASSES),
    "deit": ("DeiTConfig", "DeiTForImageClassification", VIT | CLASSES),
    "deit_distilled": ("DeiTConfig", "DeiTForImageClassificationWithTeacher", VIT | CLASSES),
    "beit": ("BeitConfig", "BeitForImageClassification", VIT | CLASSES),
    "beit_shared_positions": (
        "BeitConfig",
        "BeitForImageClassification",
        VIT | CLASSES | {"use_shared_relative_position_bias": True, "use_mean_pooling": False},
    ),
    "beit_relative": (
        "BeitConfig",
        "BeitForImageClassification",
        VIT | CLASSES | {"use_relative_position_bias": True, "layer_scale_init_value": 0.1},
    ),
    "data2vec": (
        "Data2VecVisionConfig",
        "Data2VecVisionForImageClassification",
        VIT | CLASSES | {"use_relative_position_bias": True},
    ),
    "dinov2": ("Dinov2Config", "Dinov2ForImageClassification", VIT | CLASSES | {"mlp_ratio": 2}),
    "dinov2_swiglu": (
        "Dinov2Config",
        "Dinov2ForImageClassification",
        VIT | CLASSES | {"mlp_ratio": 2, "use_swiglu_ffn": True},
    ),
    "dinov2_registers": (
        "Dinov2WithRegistersConfig",
        "Dinov2WithRegistersForImageClassification",
        VIT | CLASSES | {"mlp_ratio": 2, "num_register_tokens": 2},
    ),
    "dinov3_vit": ("DINOv3ViTConfig", "DINOv3ViTModel", VIT),
    "ijepa": ("IJepaConfig", "IJepaForImageClassification", VIT | CLASSES),
    "vit_mae": ("ViTMAEConfig", "ViTMAEForPreTraining", MAE),
    "vit_mae_model": ("ViTMAEConfig", "ViTMAEModel", MAE),
    "yolos": (
        "YolosConfig",
        "YolosForObjectDetection",
        VIT | CLASSES | {"image_size": [32, 32], "num_detection_tokens": 5},
    ),
    # the image towers of pairs
    "clip_vision": ("CLIPVisionConfig", "CLIPVisionModel", VIT),
    "clip_vision_projection": (
        "CLIPVisionConfig",
        "CLIPVisionModelWithProjection",
        VIT | {"projection_dim": 24},
    ),
    "clip": ("CLIPConfig", "CLIPForImageClassification", _vision("CLIPVisionConfig", VIT)),
    "siglip_vision": ("SiglipVisionConfig", "SiglipVisionModel", VIT),
    "siglip": ("SiglipConfig", "SiglipForImageClassification", _vision("SiglipVisionConfig", VIT)),
    # rotary positions by complex numbers
    "llama4_vision": (
        "Llama4VisionConfig",
        "Llama4VisionModel",
        VIT
        | {"hidden_size": 64, "intermediate_size": 256, "vision_output_dim": 48}
        | {"projector_input_dim": 48, "projector_output_dim": 48},
    ),
    # windows
    "swin": ("SwinConfig", "SwinForImageClassification", WINDOWS | CLASSES),
    "swin_masked": ("SwinConfig", "SwinForMaskedImageModeling", WINDOWS | {"encoder_stride": 8}),
    "swinv2": ("Swinv2Config", "Swinv2ForImageClassification", WINDOWS | CLASSES),
    "donut_swin": ("DonutSwinConfig", "DonutSwinForImageClassification", WINDOWS | CLASSES),
    "focalnet": (
        "FocalNetConfig",
        "FocalNetForImageClassification",
        CLASSES
        | {"image_size": 64, "embed_dim": 16, "depths": [1, 1], "focal_levels": [2, 2]}
        | {"focal_windows": [3, 3]},
    ),
    "hiera": ("HieraConfig", "HieraForImageClassification", HIERA | CLASSES),
    # pyramids
    "pvt": (
        "PvtConfig",
        "PvtForImageClassification",
        PYRAMID | CLASSES | {"image_size": 64, "sequence_reduction_ratios": [4, 2, 1, 1]},
    ),
    "pvt_v2": ("PvtV2Config", "PvtV2ForImageClassification", PYRAMID | CLASSES | {"image_size": 64}),
    "pvt_v2_linear": (
        "PvtV2Config",
        "PvtV2ForImageClassification",
        PYRAMID | CLASSES | {"image_size": 64, "linear_attention": True},
    ),
    "segformer": ("SegformerConfig", "SegformerForImageClassification", SEGFORMER | CLASSES),
    "segformer_segmentation": ("SegformerConfig", "SegformerForSemanticSegmentation", SEGFORMER | CLASSES),
    "glpn": ("GLPNConfig", "GLPNForDepthEstimation", SEGFORMER),
    "cvt": (
        "CvtConfig",
        "CvtForImageClassification",
        CLASSES | {"embed_dim": [16, 32, 48], "num_heads": [1, 2, 4], "depth": [1, 2, 3]},
    ),
    "levit": ("LevitConfig", "LevitForImageClassification", LEVIT | CLASSES),
    "levit_distilled": ("LevitConfig", "LevitForImageClassificationWithTeacher", LEVIT | CLASSES),
    "poolformer": (
        "PoolFormerConfig",
        "PoolFormerForImageClassification",
        CLASSES | {"hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 1, 1]},
    ),
    "mobilevit": ("MobileViTConfig", "MobileViTForImageClassification", MOBILEVIT | CLASSES),
    "mobilevit_segmentation": ("MobileViTConfig", "MobileViTForSemanticSegmentation", MOBILEVIT | CLASSES),
    "mobilevitv2": (
        "MobileViTV2Config",
        "MobileViTV2ForImageClassification",
        CLASSES | {"image_size": 64, "width_multiplier": 0.25},
    ),
    "swiftformer": (
        "SwiftFormerConfig",
        "SwiftFormerForImageClassification",
        CLASSES | {"image_size": 64, "depths": [1, 1, 1, 1], "embed_dims": [16, 24, 32, 48]},
    ),
    # convolutions
    "convnext": ("ConvNextConfig", "ConvNextForImageClassification", CONVNEXT | CLASSES),
    "convnextv2": ("ConvNextV2Config", "ConvNextV2ForImageClassification", CONVNEXT | CLASSES),
    "resnet": ("ResNetConfig", "ResNetForImageClassification", CONVNET | CLASSES),
    "regnet": (
        "RegNetConfig",
        "RegNetForImageClassification",
        CONVNET | CLASSES | {"groups_width": 8},
    ),
    "bit": (  # weight-standardised
        "BitConfig",
        "BitForImageClassification",
        CLASSES | {"embedding_size": 16, "hidden_sizes": [32, 64], "depths": [1, 1], "num_groups": 8},
    ),
    "mobilenet_v2": (
        "MobileNetV2Config",
        "MobileNetV2ForImageClassification",
        CLASSES | {"image_size": 64, "depth_multiplier": 0.35},
    ),
    # dense prediction, backbones
    "vitdet": ("VitDetConfig", "VitDetModel", VIT | {"window_block_indices": [0], "window_size": 2}),
    "vitdet_backbone": (
        "VitDetConfig",
        "VitDetBackbone",
        VIT
        | FEATURES
        | {"window_block_indices": [0], "window_size": 2, "use_relative_position_embeddings": True},
    ),
    "swin_backbone": ("SwinConfig", "SwinBackbone", WINDOWS | FEATURES),
    "dinov2_backbone": ("Dinov2Config", "Dinov2Backbone", VIT | FEATURES | {"mlp_ratio": 2}),
    "pvt_v2_backbone": ("PvtV2Config", "PvtV2Backbone", PYRAMID | {"image_size": 64} | FEATURES),
    "convnext_backbone": ("ConvNextConfig", "ConvNextBackbone", CONVNEXT | FEATURES),
}

MODELS: dict[str, Callable[[], nn.Module]] = {
    **{f"hf_{name}": partial(_build, *row) for name, row in ROWS.items()},
    "hf_detr": _detr,
    "hf_detr_backbone": _detr_backbone,
    "hf_dpt_depth": partial(_dpt, "DPTForDepthEstimation"),
    "hf_dpt_segmentation": partial(_dpt, "DPTForSemanticSegmentation"),
}
