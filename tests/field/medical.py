"""monai: two and three dimensions, convolutions with norms of every kind, transformers in U-Nets."""

from __future__ import annotations

from typing import Any

from field.row import Row, noise, row

__all__ = ["MODELS"]

NETS = "monai.networks.nets."
FLAT: dict[str, Any] = {"spatial_dims": 2, "in_channels": 1, "out_channels": 2}
VIT: dict[str, Any] = {"in_channels": 1, "hidden_size": 48, "mlp_dim": 96, "num_heads": 4}
LEVELS: dict[str, Any] = {"channels": (8, 16, 32), "strides": (2, 2)}
SLICE = noise(1, 32, 32)
VOLUME = noise(1, 32, 32, 32)

MODELS: dict[str, Row] = {
    "monai_unetr": row(NETS + "UNETR", VIT | {"out_channels": 2, "img_size": 32, "feature_size": 8}, VOLUME),
    "monai_unetr_2d": row(
        NETS + "UNETR",
        VIT | {"out_channels": 2, "img_size": 32, "feature_size": 8, "spatial_dims": 2, "norm_name": "batch"},
        SLICE,
    ),
    "monai_swin_unetr": row(
        NETS + "SwinUNETR",
        FLAT | {"feature_size": 12, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 4, 4)},
        noise(1, 64, 64),
    ),
    "monai_swin_unetr_v2": row(
        NETS + "SwinUNETR",
        FLAT
        | {"feature_size": 12, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 4, 4), "use_v2": True}
        | {"window_size": 4},
        noise(1, 64, 64),
    ),
    "monai_vit": row(
        NETS + "ViT",
        VIT
        | {"img_size": 32, "patch_size": 8, "num_layers": 2, "classification": True, "spatial_dims": 2}
        | {"num_classes": 5},
        SLICE,
    ),
    "monai_vit_3d_features": row(
        NETS + "ViT", VIT | {"img_size": 16, "patch_size": 8, "num_layers": 2}, noise(1, 16, 16, 16)
    ),
    "monai_vit_autoencoder": row(
        NETS + "ViTAutoEnc",
        VIT | {"img_size": 32, "patch_size": 16, "num_layers": 2, "deconv_chns": 8, "spatial_dims": 2},
        SLICE,
    ),
    "monai_densenet": row(
        NETS + "DenseNet",
        FLAT | {"init_features": 16, "growth_rate": 8, "block_config": (2, 2)},
        SLICE,
    ),
    "monai_segresnet": row(
        NETS + "SegResNet", FLAT | {"init_filters": 16, "blocks_down": (1, 1, 1), "blocks_up": (1, 1)}, SLICE
    ),
    "monai_unet": row(NETS + "UNet", FLAT | LEVELS | {"num_res_units": 1}, SLICE),
    "monai_unet_batchnorm": row(NETS + "UNet", FLAT | LEVELS | {"norm": "batch", "act": "relu"}, SLICE),
    "monai_attention_unet": row(NETS + "AttentionUnet", FLAT | LEVELS, SLICE),
    "monai_basic_unet": row(NETS + "BasicUNet", FLAT | {"features": (8, 8, 16, 16, 32, 8)}, SLICE),
    "monai_basic_unet_plus_plus": row(
        NETS + "BasicUNetPlusPlus", FLAT | {"features": (8, 8, 16, 16, 32, 8)}, SLICE
    ),
    "monai_vnet": row(
        NETS + "VNet",
        {"spatial_dims": 2, "in_channels": 1, "out_channels": 2, "dropout_dim": 2},
        SLICE,
    ),
    "monai_dynunet": row(
        NETS + "DynUNet",
        FLAT
        | {"kernel_size": [3, 3, 3], "strides": [1, 2, 2], "upsample_kernel_size": [2, 2]}
        | {"filters": [8, 16, 32]},
        SLICE,
    ),
    "monai_resnet": row(
        NETS + "ResNet",
        {"block": "basic", "layers": [1, 1, 1, 1], "block_inplanes": [8, 16, 32, 64], "spatial_dims": 2}
        | {"n_input_channels": 1, "num_classes": 5},
        SLICE,
    ),
    "monai_senet": row(
        NETS + "SENet",
        {"spatial_dims": 2, "in_channels": 1, "block": "se_resnet_bottleneck", "layers": (1, 1, 1, 1)}
        | {"groups": 1, "reduction": 4, "inplanes": 16, "num_classes": 5},
        SLICE,
    ),
    "monai_autoencoder_kl": row(
        NETS + "AutoencoderKL",
        FLAT
        | {"channels": (8, 16), "num_res_blocks": (1, 1), "attention_levels": (False, True)}
        | {"norm_num_groups": 4, "out_channels": 1},
        SLICE,
    ),
    "monai_diffusion_unet": row(
        NETS + "DiffusionModelUNet",
        FLAT
        | {"channels": (16, 32), "num_res_blocks": 1, "attention_levels": (False, True)}
        | {"norm_num_groups": 4, "num_head_channels": 8, "out_channels": 1},
        SLICE,
        noise(),
    ),
    "monai_mednext": row(
        NETS + "MedNeXt",
        FLAT
        | {"init_filters": 8, "kernel_size": 3, "blocks_down": (1, 1), "blocks_bottleneck": 1}
        | {"blocks_up": (1, 1)},
        SLICE,
    ),
    "monai_autoencoder": row(NETS + "AutoEncoder", FLAT | LEVELS | {"strides": (2, 2, 2)}, SLICE),
    "monai_regressor": row(NETS + "Regressor", {"in_shape": (1, 32, 32), "out_shape": (3,)} | LEVELS, SLICE),
    "monai_flexible_unet": row(
        NETS + "FlexibleUNet",
        {"in_channels": 3, "out_channels": 2, "backbone": "resnet10", "decoder_channels": (32, 16, 16, 8, 8)},
        noise(3, 64, 64),
    ),
}
