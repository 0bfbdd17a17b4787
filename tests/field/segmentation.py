"""segmentation_models_pytorch: a decoder of each kind over encoders of its own and of timm's."""

from __future__ import annotations

from typing import Any

from field.row import Row, noise, row

__all__ = ["MODELS"]

SMP = "segmentation_models_pytorch."
PLAIN: dict[str, Any] = {"encoder_weights": None, "classes": 3}
NARROW: dict[str, Any] = PLAIN | {"encoder_name": "tu-resnet10t"}
DECODER: dict[str, Any] = {"decoder_channels": (32, 16, 16, 8, 8)}
IMAGE = noise(3, 64, 64)

MODELS: dict[str, Row] = {
    "smp_unet_resnet10": row(SMP + "Unet", NARROW | DECODER, IMAGE),
    "smp_unet_attention_gates": row(
        SMP + "Unet",
        NARROW | {"decoder_attention_type": "scse", "decoder_channels": (32, 32, 16, 16, 16)},
        IMAGE,
    ),
    "smp_unet_mit_b0": row(SMP + "Unet", PLAIN | DECODER | {"encoder_name": "mit_b0"}, IMAGE),
    "smp_unet_mobilenet_v3": row(
        SMP + "Unet", PLAIN | DECODER | {"encoder_name": "tu-mobilenetv3_small_050"}, IMAGE
    ),
    "smp_unet_convnext": row(
        SMP + "Unet",
        PLAIN
        | {"encoder_name": "tu-convnext_atto", "encoder_depth": 4}
        | {"decoder_channels": (32, 16, 16, 8)},
        IMAGE,
    ),
    "smp_unet_plus_plus": row(SMP + "UnetPlusPlus", NARROW | DECODER, IMAGE),
    "smp_manet": row(SMP + "MAnet", NARROW | DECODER | {"decoder_pab_channels": 16}, IMAGE),
    "smp_linknet": row(SMP + "Linknet", NARROW, IMAGE),
    "smp_fpn": row(
        SMP + "FPN",
        NARROW | {"decoder_pyramid_channels": 32, "decoder_segmentation_channels": 32},
        IMAGE,
    ),
    "smp_pspnet": row(SMP + "PSPNet", NARROW | {"psp_out_channels": 32}, IMAGE),
    "smp_pan": row(SMP + "PAN", NARROW | {"decoder_channels": 16}, noise(3, 128, 128)),
    "smp_deeplab_v3_plus": row(SMP + "DeepLabV3Plus", NARROW | {"decoder_channels": 32}, IMAGE),
    "smp_upernet_swin": row(
        SMP + "UPerNet",
        PLAIN
        | {"encoder_name": "tu-swin_s3_tiny_224", "encoder_depth": 4, "decoder_channels": 32}
        | {"img_size": 64}
        | {"window_size": 4, "depths": (1, 1, 1, 1)},
        IMAGE,
    ),
    "smp_segformer_mit_b0": row(
        SMP + "Segformer", PLAIN | {"encoder_name": "mit_b0", "decoder_segmentation_channels": 32}, IMAGE
    ),
    "smp_dpt_vit_tiny": row(
        SMP + "DPT",
        PLAIN
        | {"encoder_name": "tu-vit_tiny_patch16_224", "decoder_intermediate_channels": (16, 16, 16, 16)}
        | {"decoder_fusion_channels": 16, "dynamic_img_size": True},
        IMAGE,
    ),
}
