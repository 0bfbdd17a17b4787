"""diffusers: transformers and U-Nets that denoise, and the autoencoders beside them."""

from __future__ import annotations

from typing import Any

from field.row import Row, noise, row, tokens

__all__ = ["MODELS"]

HEADS: dict[str, Any] = {"num_attention_heads": 4, "attention_head_dim": 8, "num_layers": 2}
LATENT = noise(4, 8, 8)
STEP = tokens(1000)
TEXT = noise(6, 24)
BLOCKS: dict[str, Any] = {"block_out_channels": (16, 32), "layers_per_block": 1, "norm_num_groups": 4}
VAE: dict[str, Any] = BLOCKS | {"down_block_types": ("DownEncoderBlock2D", "DownEncoderBlock2D")}
VAE |= {"up_block_types": ("UpDecoderBlock2D", "UpDecoderBlock2D")}

MODELS: dict[str, Row] = {
    "diffusers_dit": row(
        "diffusers.DiTTransformer2DModel",
        HEADS | {"sample_size": 8, "num_embeds_ada_norm": 10},
        hidden_states=LATENT,
        timestep=STEP,
        class_labels=tokens(10),
    ),
    "diffusers_pixart": row(
        "diffusers.PixArtTransformer2DModel",
        HEADS | {"sample_size": 8, "cross_attention_dim": 32, "caption_channels": 24},
        hidden_states=LATENT,
        encoder_hidden_states=TEXT,
        timestep=STEP,
    ),
    "diffusers_sd3": row(
        "diffusers.SD3Transformer2DModel",
        HEADS
        | {"sample_size": 8, "in_channels": 4, "out_channels": 4, "joint_attention_dim": 24}
        | {"caption_projection_dim": 32, "pooled_projection_dim": 16, "pos_embed_max_size": 8},
        hidden_states=LATENT,
        encoder_hidden_states=TEXT,
        pooled_projections=noise(16),
        timestep=STEP,
    ),
    "diffusers_sana": row(
        "diffusers.SanaTransformer2DModel",
        HEADS
        | {"in_channels": 4, "out_channels": 4, "num_cross_attention_heads": 4, "sample_size": 8}
        | {"cross_attention_head_dim": 8, "cross_attention_dim": 32, "caption_channels": 24},
        hidden_states=LATENT,
        encoder_hidden_states=TEXT,
        timestep=STEP,
    ),
    "diffusers_auraflow": row(
        "diffusers.AuraFlowTransformer2DModel",
        {"sample_size": 8, "num_mmdit_layers": 1, "num_single_dit_layers": 1, "attention_head_dim": 8}
        | {"num_attention_heads": 4, "joint_attention_dim": 24, "caption_projection_dim": 32}
        | {"pos_embed_max_size": 64},
        hidden_states=LATENT,
        encoder_hidden_states=TEXT,
        timestep=STEP,
    ),
    "diffusers_prior": row(
        "diffusers.PriorTransformer",
        HEADS | {"embedding_dim": 24, "num_embeddings": 6},
        hidden_states=noise(24),
        timestep=STEP,
        proj_embedding=noise(24),
        encoder_hidden_states=TEXT,
    ),
    "diffusers_latte": row(
        "diffusers.LatteTransformer3DModel",
        HEADS
        | {"in_channels": 4, "out_channels": 8, "cross_attention_dim": 32, "attention_bias": True}
        | {"sample_size": 8, "patch_size": 2, "activation_fn": "gelu-approximate", "num_embeds_ada_norm": 10}
        | {"norm_type": "ada_norm_single", "norm_elementwise_affine": False, "caption_channels": 24}
        | {"video_length": 2},
        hidden_states=noise(4, 2, 8, 8),
        timestep=STEP,
        encoder_hidden_states=TEXT,
    ),
    "diffusers_cogvideox": row(
        "diffusers.CogVideoXTransformer3DModel",
        HEADS
        | {"in_channels": 4, "out_channels": 4, "time_embed_dim": 8, "text_embed_dim": 24}
        | {"sample_width": 8, "sample_height": 8, "sample_frames": 8, "max_text_seq_length": 6},
        hidden_states=noise(2, 4, 8, 8),
        encoder_hidden_states=TEXT,
        timestep=STEP,
    ),
    "diffusers_wan": row(
        "diffusers.WanTransformer3DModel",
        {"num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 4, "out_channels": 4}
        | {"text_dim": 24, "freq_dim": 16, "ffn_dim": 48, "num_layers": 1, "rope_max_seq_len": 32},
        hidden_states=noise(4, 2, 8, 8),
        timestep=STEP,
        encoder_hidden_states=TEXT,
    ),
    "diffusers_unet_2d": row(
        "diffusers.UNet2DModel",
        BLOCKS
        | {"sample_size": 16, "down_block_types": ("DownBlock2D", "AttnDownBlock2D")}
        | {"up_block_types": ("AttnUpBlock2D", "UpBlock2D")},
        noise(3, 16, 16),
        STEP,
    ),
    "diffusers_unet_condition": row(
        "diffusers.UNet2DConditionModel",
        BLOCKS
        | {"sample_size": 8, "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D")}
        | {"up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"), "cross_attention_dim": 24}
        | {"attention_head_dim": 4},
        LATENT,
        STEP,
        TEXT,
    ),
    "diffusers_autoencoder_kl": row("diffusers.AutoencoderKL", VAE, noise(3, 32, 32)),
    "diffusers_autoencoder_tiny": row(
        "diffusers.AutoencoderTiny",
        {"encoder_block_out_channels": (16, 16), "decoder_block_out_channels": (16, 16)}
        | {"num_encoder_blocks": (1, 1), "num_decoder_blocks": (1, 1)},
        noise(3, 16, 16),
    ),
    "diffusers_autoencoder_dc": row(
        "diffusers.AutoencoderDC",
        {
            "latent_channels": 4,
            "attention_head_dim": 4,
            "encoder_block_types": ("ResBlock", "EfficientViTBlock"),
        }
        | {"decoder_block_types": ("ResBlock", "EfficientViTBlock")}
        | {"encoder_block_out_channels": (8, 16), "decoder_block_out_channels": (8, 16)}
        | {"encoder_layers_per_block": (1, 1), "decoder_layers_per_block": (1, 1)}
        | {"encoder_qkv_multiscales": ((), (5,)), "decoder_qkv_multiscales": ((), (5,))},
        noise(3, 16, 16),
    ),
}
