"""Transformers of sequences, tables and videos, from x-transformers and small packages of one idea each."""

from __future__ import annotations

from typing import Any

from torch import nn

from field.row import Row, given, noise, row, tokens

__all__ = ["MODELS"]

WORDS = tokens(99, 16)
VECTORS = noise(16, 32)
IMAGE = noise(3, 32, 32)
LAYERS: dict[str, Any] = {"dim": 32, "depth": 2, "heads": 4, "attn_dim_head": 8}
MIXER: dict[str, Any] = {"image_size": 32, "patch_size": 8, "dim": 48, "depth": 2, "num_classes": 10}


def _words(**options: Any) -> nn.Module:
    """A language model: causal."""
    from x_transformers import Decoder, TransformerWrapper

    return given(
        TransformerWrapper(num_tokens=99, max_seq_len=16, attn_layers=Decoder(**LAYERS | options)), WORDS
    )


def _encoded_words(**options: Any) -> nn.Module:
    from x_transformers import Encoder, TransformerWrapper

    layers = Encoder(**LAYERS | options)
    return given(TransformerWrapper(num_tokens=99, max_seq_len=16, attn_layers=layers), WORDS)


def _vectors(**options: Any) -> nn.Module:
    from x_transformers import Encoder

    return given(Encoder(**LAYERS | options), VECTORS)


def _images(**options: Any) -> nn.Module:
    from x_transformers import Encoder, ViTransformerWrapper

    layers = Encoder(**LAYERS | options)
    return given(ViTransformerWrapper(image_size=32, patch_size=8, num_classes=10, attn_layers=layers), IMAGE)


def _continuous() -> nn.Module:
    from x_transformers import ContinuousTransformerWrapper, Encoder

    return given(
        ContinuousTransformerWrapper(dim_in=12, dim_out=5, max_seq_len=16, attn_layers=Encoder(**LAYERS)),
        noise(16, 12),
    )


def _tables() -> nn.Module:
    """Numbers and categories, a token each."""
    from rtdl_revisiting_models import FTTransformer

    options = FTTransformer.get_default_kwargs(n_blocks=1) | {"d_block": 32, "d_out": 3}
    options |= {"attention_n_heads": 4}
    return given(
        FTTransformer(n_cont_features=5, cat_cardinalities=[4, 4], **options), noise(5), tokens(4, 2)
    )


def _experts() -> nn.Module:
    from soft_moe_pytorch import SoftMoE

    return given(SoftMoE(dim=32, seq_len=16, num_experts=4), VECTORS)


MODELS: dict[str, Row] = {
    "x_transformers_images": _images,
    "x_transformers_images_rms_swiglu": lambda: _images(use_rmsnorm=True, ff_swish=True, ff_glu=True),
    "x_transformers_decoder": _words,
    "x_transformers_decoder_rotary": lambda: _words(rotary_pos_emb=True, attn_one_kv_head=True),
    "x_transformers_decoder_alibi": lambda: _words(alibi_pos_bias=True, alibi_num_heads=4),
    "x_transformers_encoder_relative": lambda: _encoded_words(rel_pos_bias=True),
    "x_transformers_encoder_talking_heads": lambda: _vectors(attn_pre_talking_heads=True),
    "x_transformers_encoder_qk_norm": lambda: _vectors(attn_qk_norm=True, sandwich_norm=True),
    "x_transformers_encoder_gated": lambda: _vectors(attn_gate_values=True, gate_residual=True),
    "x_transformers_encoder_memories": lambda: _vectors(attn_num_mem_kv=4, macaron=True),
    "x_transformers_continuous": _continuous,
    "perceiver": row(
        "perceiver_pytorch.Perceiver",
        {"num_freq_bands": 4, "depth": 1, "max_freq": 10.0, "num_latents": 8, "latent_dim": 32}
        | {"latent_heads": 4, "latent_dim_head": 8, "cross_dim_head": 8, "num_classes": 10},
        noise(16, 16, 3),
    ),
    "perceiver_io": row(
        "perceiver_pytorch.PerceiverIO",
        {"depth": 1, "dim": 32, "queries_dim": 24, "logits_dim": 10, "num_latents": 8, "latent_dim": 32}
        | {"latent_heads": 4, "latent_dim_head": 8, "cross_dim_head": 8},
        data=VECTORS,
        queries=noise(5, 24),
    ),
    "linformer": row(
        "linformer.Linformer", {"dim": 32, "seq_len": 16, "depth": 2, "k": 8, "heads": 4}, VECTORS
    ),
    "linformer_words": row(
        "linformer.LinformerLM",
        {"num_tokens": 99, "dim": 32, "seq_len": 16, "depth": 2, "k": 8, "heads": 4, "one_kv_head": True},
        WORDS,
    ),
    "g_mlp_images": row("g_mlp_pytorch.gMLPVision", MIXER, IMAGE),
    "g_mlp_words": row("g_mlp_pytorch.gMLP", {"num_tokens": 99, "dim": 32, "depth": 2, "seq_len": 16}, WORDS),
    "mlp_mixer": row("mlp_mixer_pytorch.MLPMixer", MIXER | {"channels": 3}, IMAGE),
    "mlp_permutator": row("mlp_mixer_pytorch.Permutator", MIXER | {"segments": 4}, IMAGE),
    "nystromformer": row(
        "nystrom_attention.Nystromformer",
        {"dim": 32, "depth": 1, "dim_head": 8, "heads": 4, "num_landmarks": 4, "pinv_iterations": 2}
        | {"attn_values_residual_conv_kernel": 3},
        VECTORS,
    ),
    "conformer": row(
        "conformer.Conformer",
        {"dim": 32, "depth": 1, "dim_head": 8, "heads": 4, "ff_mult": 2, "conv_kernel_size": 5},
        VECTORS,
    ),
    "timesformer_videos": row(
        "timesformer_pytorch.TimeSformer",
        {"dim": 32, "num_frames": 2, "num_classes": 10, "image_size": 32, "patch_size": 8, "depth": 1}
        | {"heads": 4, "dim_head": 8},
        noise(2, 3, 32, 32),
    ),
    "segformer_pytorch": row(
        "segformer_pytorch.Segformer",
        {"dims": (8, 16, 24, 32), "heads": (1, 2, 3, 4), "ff_expansion": (2, 2, 2, 2), "num_layers": 1}
        | {"decoder_dim": 16},
        noise(3, 64, 64),
    ),
    "local_attention_words": row(
        "local_attention.LocalTransformer",
        {"num_tokens": 99, "max_seq_len": 16, "dim": 32, "depth": 1, "local_attn_window_size": 8}
        | {"dim_head": 8, "heads": 4},
        WORDS,
    ),
    "ft_transformer_tables": _tables,
    "soft_moe": _experts,
}
