"""Models of transformers that see videos, find objects, segment, measure depth, or read beside it."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn

from field.row import Draw, Row, given, noise, tokens

__all__ = ["MODELS"]

WIDTHS: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
WIDTHS |= {"intermediate_size": 64}
VIT: dict[str, Any] = WIDTHS | {"image_size": 32, "patch_size": 8}
WORDS: dict[str, Any] = WIDTHS | {"vocab_size": 99, "max_position_embeddings": 16}
VIDEO: dict[str, Any] = VIT | {"num_frames": 4, "num_labels": 5}
DETECTOR: dict[str, Any] = {"use_timm_backbone": False, "backbone": None, "use_pretrained_backbone": False}
DETECTOR |= {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4}
DETECTOR |= {"decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "num_queries": 5}
DETECTOR |= {"num_labels": 5}
SWIN: dict[str, Any] = {"image_size": 64, "embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 4]}
SWIN |= {"window_size": 2, "out_features": ["stage1", "stage2", "stage3", "stage4"]}

IMAGE = noise(3, 32, 32)
LARGER = noise(3, 64, 64)
TEXT = tokens(99, 8)


def _lib() -> Any:
    import transformers

    return transformers


def _build(config: str, model: str, options: dict[str, Any], inputs: dict[str, Draw]) -> nn.Module:
    return given(getattr(_lib(), model)(getattr(_lib(), config)(**options)), **inputs)


def _row(config: str, model: str, options: dict[str, Any], **inputs: Draw) -> Row:
    return partial(_build, config, model, options, inputs or {"pixel_values": IMAGE})


def _resnet(*features: str) -> Any:
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}
    return _lib().ResNetConfig(**sizes, layer_type="basic", out_features=list(features or ["stage4"]))


def _detector(config: str, model: str, *features: str, **options: Any) -> nn.Module:
    made = getattr(_lib(), config)(backbone_config=_resnet(*features), **DETECTOR | options)
    return given(getattr(_lib(), model)(made), pixel_values=LARGER)


def _rt_detr() -> nn.Module:
    backbone = _lib().RTDetrResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 16, 24, 32],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )
    config = _lib().RTDetrConfig(
        backbone_config=backbone,
        encoder_hidden_dim=32,
        encoder_in_channels=[16, 24, 32],
        encoder_ffn_dim=64,
        encoder_attention_heads=4,
        d_model=32,
        num_queries=5,
        decoder_in_channels=[32, 32, 32],
        decoder_ffn_dim=64,
        decoder_layers=1,
        decoder_attention_heads=4,
        num_labels=5,
        anchor_image_size=None,
        num_denoising=0,
        use_timm_backbone=False,
        backbone=None,
    )
    return given(_lib().RTDetrForObjectDetection(config), pixel_values=LARGER)


def _maskformer() -> nn.Module:
    lib = _lib()
    decoder = lib.DetrConfig(**DETECTOR | {"backbone_config": _resnet()})
    config = lib.MaskFormerConfig(
        backbone_config=lib.MaskFormerSwinConfig(**SWIN),
        decoder_config=decoder,
        fpn_feature_size=32,
        mask_feature_size=32,
        num_labels=5,
    )
    return given(lib.MaskFormerForInstanceSegmentation(config), pixel_values=LARGER)


def _mask2former() -> nn.Module:
    lib = _lib()
    config = lib.Mask2FormerConfig(
        backbone_config=lib.SwinConfig(**SWIN),
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=64,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=4,
        dim_feedforward=64,
        num_queries=5,
        num_labels=5,
    )
    return given(lib.Mask2FormerForUniversalSegmentation(config), pixel_values=LARGER)


def _upernet() -> nn.Module:
    lib = _lib()
    config = lib.UperNetConfig(
        backbone_config=lib.ConvNextConfig(
            hidden_sizes=[8, 16, 24, 32],
            depths=[1, 1, 1, 1],
            out_features=["stage1", "stage2", "stage3", "stage4"],
        ),
        hidden_size=32,
        auxiliary_channels=16,
        auxiliary_in_channels=24,
        num_labels=5,
    )
    return given(lib.UperNetForSemanticSegmentation(config), pixel_values=LARGER)


def _depth_anything() -> nn.Module:
    lib = _lib()
    backbone = lib.Dinov2Config(
        **WIDTHS | {"image_size": 32, "patch_size": 8, "num_hidden_layers": 4},
        out_features=["stage1", "stage2", "stage3", "stage4"],
        reshape_hidden_states=False,
        apply_layernorm=True,
    )
    config = lib.DepthAnythingConfig(
        backbone_config=backbone,
        patch_size=8,
        reassemble_hidden_size=32,
        neck_hidden_sizes=[8, 16, 24, 32],
        fusion_hidden_size=16,
        head_hidden_size=16,
    )
    return given(lib.DepthAnythingForDepthEstimation(config), pixel_values=IMAGE)


def _segment_anything() -> nn.Module:
    lib = _lib()
    config = lib.SamConfig(
        vision_config=VIT
        | {"image_size": 64, "patch_size": 16, "output_channels": 32, "window_size": 2, "mlp_dim": 64}
        | {"global_attn_indexes": [1], "num_pos_feats": 16},
        prompt_encoder_config={
            "hidden_size": 32,
            "image_size": 64,
            "patch_size": 16,
            "mask_input_channels": 4,
        },
        mask_decoder_config={
            "hidden_size": 32,
            "mlp_dim": 64,
            "num_attention_heads": 4,
            "num_hidden_layers": 2,
        }
        | {"iou_head_hidden_dim": 32},
    )
    return given(lib.SamModel(config), pixel_values=LARGER, input_points=noise(1, 2, 2))


def _segment_anything_vision() -> nn.Module:
    lib = _lib()
    config = lib.SamVisionConfig(
        **VIT
        | {"image_size": 64, "patch_size": 16, "output_channels": 32, "window_size": 2, "mlp_dim": 64}
        | {"global_attn_indexes": [1]}
    )
    return given(lib.SamVisionModel(config), pixel_values=LARGER)


def _pair(config: str, model: str, **options: Any) -> nn.Module:
    lib = _lib()
    made = getattr(lib, config)(text_config=WORDS | options, vision_config=VIT, projection_dim=24)
    return given(getattr(lib, model)(made), input_ids=TEXT, pixel_values=IMAGE)


def _tr_ocr() -> nn.Module:
    lib = _lib()
    config = lib.VisionEncoderDecoderConfig.from_encoder_decoder_configs(
        lib.ViTConfig(**VIT),
        lib.TrOCRConfig(
            d_model=32,
            decoder_layers=1,
            decoder_attention_heads=4,
            decoder_ffn_dim=64,
            vocab_size=99,
            max_position_embeddings=16,
            cross_attention_hidden_size=32,
        ),
    )
    return given(lib.VisionEncoderDecoderModel(config), pixel_values=IMAGE, decoder_input_ids=tokens(99, 5))


def _clipseg() -> nn.Module:
    lib = _lib()
    config = lib.CLIPSegConfig(
        text_config=WORDS,
        vision_config=VIT,
        projection_dim=24,
        reduce_dim=16,
        decoder_num_attention_heads=4,
        decoder_intermediate_size=32,
        extract_layers=[0, 1],
        conditional_layer=0,
    )
    return given(lib.CLIPSegForImageSegmentation(config), input_ids=TEXT, pixel_values=IMAGE)


MODELS: dict[str, Row] = {
    # videos
    "hf_videomae": _row(
        "VideoMAEConfig",
        "VideoMAEForVideoClassification",
        VIDEO | {"tubelet_size": 2},
        pixel_values=noise(4, 3, 32, 32),
    ),
    "hf_timesformer": _row(
        "TimesformerConfig", "TimesformerForVideoClassification", VIDEO, pixel_values=noise(4, 3, 32, 32)
    ),
    "hf_vivit": _row(
        "VivitConfig",
        "VivitForVideoClassification",
        VIDEO | {"tubelet_size": [2, 8, 8]},
        pixel_values=noise(4, 3, 32, 32),
    ),
    "hf_vjepa2": _row(
        "VJEPA2Config",
        "VJEPA2Model",
        {"patch_size": 8, "crop_size": 32, "frames_per_clip": 4, "hidden_size": 48, "num_hidden_layers": 1}
        | {"num_attention_heads": 2, "pred_hidden_size": 48, "pred_num_attention_heads": 2}
        | {"pred_num_hidden_layers": 1, "pred_num_mask_tokens": 2},
        pixel_values_videos=noise(4, 3, 32, 32),
    ),
    # detection
    "hf_conditional_detr": partial(_detector, "ConditionalDetrConfig", "ConditionalDetrForObjectDetection"),
    "hf_deformable_detr": partial(
        _detector,
        "DeformableDetrConfig",
        "DeformableDetrForObjectDetection",
        "stage2",
        "stage3",
        "stage4",
        num_feature_levels=3,
        decoder_layers=2,
    ),
    "hf_table_transformer": partial(
        _detector, "TableTransformerConfig", "TableTransformerForObjectDetection"
    ),
    "hf_dab_detr": partial(_detector, "DabDetrConfig", "DabDetrForObjectDetection", hidden_size=32),
    "hf_rt_detr": _rt_detr,
    "hf_owlvit": partial(_pair, "OwlViTConfig", "OwlViTModel"),
    # segmentation
    "hf_maskformer": _maskformer,
    "hf_mask2former": _mask2former,
    "hf_upernet_convnext": _upernet,
    "hf_sam": _segment_anything,
    "hf_sam_vision": _segment_anything_vision,
    "hf_clipseg": _clipseg,
    "hf_data2vec_segmentation": _row(
        "Data2VecVisionConfig",
        "Data2VecVisionForSemanticSegmentation",
        VIT
        | {"num_hidden_layers": 4, "out_indices": [0, 1, 2, 3], "num_labels": 5}
        | {"auxiliary_channels": 16, "pool_scales": [1, 2]},
    ),
    # depth, restoration, points
    "hf_depth_anything": _depth_anything,
    "hf_swin2sr": _row(
        "Swin2SRConfig",
        "Swin2SRForImageSuperResolution",
        {"image_size": 16, "embed_dim": 24, "depths": [2], "num_heads": [4], "window_size": 8, "upscale": 2},
        pixel_values=noise(3, 16, 16),
    ),
    "hf_superpoint": _row(
        "SuperPointConfig",
        "SuperPointForKeypointDetection",
        {
            "encoder_hidden_sizes": [8, 16, 16, 16],
            "decoder_hidden_size": 16,
            "keypoint_decoder_dim": 65,
            "descriptor_decoder_dim": 16,
        },
    ),
    # images and words
    "hf_clip": partial(_pair, "CLIPConfig", "CLIPModel"),
    "hf_siglip": _row(
        "SiglipConfig",
        "SiglipModel",
        {"text_config": WORDS, "vision_config": VIT},
        input_ids=TEXT,
        pixel_values=IMAGE,
    ),
    "hf_chinese_clip": partial(_pair, "ChineseCLIPConfig", "ChineseCLIPModel"),
    "hf_altclip": partial(_pair, "AltCLIPConfig", "AltCLIPModel", project_dim=32, pad_token_id=0),
    "hf_groupvit_vision": _row(
        "GroupViTVisionConfig",
        "GroupViTVisionModel",
        VIT | {"depths": [1, 1], "num_group_tokens": [4, 0], "num_output_groups": [4, 4]},
    ),
    "hf_blip_vision": _row("BlipVisionConfig", "BlipVisionModel", VIT),
    "hf_blip": partial(_pair, "BlipConfig", "BlipModel"),
    "hf_vilt": _row(
        "ViltConfig",
        "ViltModel",
        WORDS | {"image_size": 32, "patch_size": 8},
        input_ids=TEXT,
        pixel_values=IMAGE,
    ),
    "hf_flava_image": _row("FlavaImageConfig", "FlavaImageModel", VIT),
    "hf_layoutlm": _row(
        "LayoutLMConfig",
        "LayoutLMForSequenceClassification",
        WORDS | {"max_2d_position_embeddings": 32, "num_labels": 5},
        input_ids=TEXT,
        bbox=partial(torch.tensor, [[[2, 3, 9, 12]] * 8] * 2),
    ),
    "hf_tr_ocr": _tr_ocr,
    "hf_perceiver": _row(
        "PerceiverConfig",
        "PerceiverForImageClassificationLearned",
        {
            "num_latents": 8,
            "d_latents": 32,
            "num_blocks": 1,
            "num_self_attends_per_block": 1,
            "image_size": 16,
        }
        | {"num_self_attention_heads": 4, "num_cross_attention_heads": 1, "num_labels": 5},
        inputs=noise(3, 16, 16),
    ),
}
