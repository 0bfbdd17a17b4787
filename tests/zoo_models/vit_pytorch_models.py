"""Every class-conditional model of vit-pytorch that torch.export accepts, small.

Their classes record no input shape, so each row gives one.  `REFUSED` holds the models that
torch.export itself can't take (on a CPU), with words of its reason.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from zoo_models.recorded import recorded

__all__ = ["MODELS", "REFUSED"]

Row = tuple[str, tuple[int, ...], dict[str, Any]]

WIDTHS: dict[str, Any] = {"num_classes": 10, "dim": 48, "heads": 4, "mlp_dim": 96}
DEEP = WIDTHS | {"depth": 2, "dim_head": 12}
IMAGE = DEEP | {"image_size": 32, "patch_size": 8}
SERIES = DEEP | {"seq_len": 64, "patch_size": 8}
VIDEO: dict[str, Any] = {"image_size": 32, "image_patch_size": 8, "frames": 4, "frame_patch_size": 2}
ND = DEEP | {"ndim": 3, "input_shape": (4, 16, 16), "patch_size": (2, 4, 4)}
CCT: dict[str, Any] = {"img_size": 32, "embedding_dim": 48, "num_layers": 2, "num_heads": 4}
CCT |= {"mlp_ratio": 2.0, "num_classes": 10, "kernel_size": 3}

PIXELS = (3, 32, 32)
FRAMES = (3, 4, 32, 32)

ROWS: dict[str, Row] = {
    "attn_residual": ("attn_residual_with_dca_simple_vit.SimpleViT", PIXELS, IMAGE),
    "cait": ("cait.CaiT", PIXELS, IMAGE | {"cls_depth": 1}),
    "cct": ("cct.CCT", PIXELS, CCT | {"positional_embedding": "learnable"}),
    "cct_3d": (
        "cct_3d.CCT",
        (3, 4, 32, 32),
        CCT | {"num_frames": 4, "positional_embedding": "learnable"},
    ),
    "cross_vit": (
        "cross_vit.CrossViT",
        (3, 48, 48),
        {"image_size": 48, "num_classes": 10, "sm_dim": 24, "lg_dim": 32, "sm_enc_heads": 2}
        | {"sm_enc_mlp_dim": 48, "sm_enc_dim_head": 12, "lg_enc_depth": 1, "lg_enc_heads": 2}
        | {"lg_enc_mlp_dim": 64, "lg_enc_dim_head": 16, "cross_attn_depth": 1, "cross_attn_heads": 2}
        | {"cross_attn_dim_head": 16, "depth": 1},
    ),
    "crossformer": (
        "crossformer.CrossFormer",
        (3, 64, 64),
        {"num_classes": 10, "dim": (32, 64, 64, 128), "depth": (1, 1, 1, 1)}
        | {"local_window_size": (4, 4, 2, 1), "global_window_size": (4, 2, 2, 1)},
    ),
    "cvt": (
        "cvt.CvT",
        (3, 64, 64),
        {"num_classes": 10, "s1_emb_dim": 16, "s1_heads": 1, "s2_emb_dim": 32, "s2_heads": 2}
        | {"s2_depth": 1, "s3_emb_dim": 48, "s3_heads": 3, "s3_depth": 1},
    ),
    "deepvit": ("deepvit.DeepViT", PIXELS, IMAGE),
    "distillable": ("distill.DistillableViT", PIXELS, IMAGE),
    "jet_vit": (
        "jet_vit.JetViT",
        PIXELS,
        IMAGE | {"window_size": 2},
    ),
    "jumbo_vit": ("jumbo_vit.JumboViT", PIXELS, IMAGE | {"jumbo_cls_k": 2}),
    "learnable_memory": ("learnable_memory_vit.ViT", PIXELS, IMAGE),
    "levit": (
        "levit.LeViT",
        (3, 64, 64),
        {"image_size": 64, "num_classes": 10, "stages": 3, "dim": (16, 32, 48), "depth": 1}
        | {"heads": (2, 4, 4), "mlp_mult": 2, "dim_key": 8, "dim_value": 16, "num_distill_classes": 10},
    ),
    # normalises over the columns of the image, which must be as many as channels
    "local_vit": ("local_vit.LocalViT", PIXELS, IMAGE | {"patch_size": 4, "dim": 8}),
    "look_vit": (
        "look_vit.LookViT",
        (3, 48, 48),
        {"image_size": 48, "num_classes": 10, "dim": 48, "depth": 1, "patch_size": 12, "heads": 4}
        | {"mlp_factor": 2, "dim_head": 12, "highres_patch_size": 8, "highres_mlp_factor": 2}
        | {"cross_attn_heads": 4, "cross_attn_dim_head": 12, "patch_conv_kernel_size": 3},
    ),
    "looped_vit": (
        "looped_vit.LoopedViT",
        PIXELS,
        WIDTHS
        | {"image_size": 32, "patch_size": 8, "dim_head": 12, "pre_loop_depth": 1}
        | {"num_looped_blocks": 1, "post_loop_depth": 1, "loop_depth": 2},
    ),
    "max_vit": (
        "max_vit.MaxViT",
        (3, 64, 64),
        {"num_classes": 10, "dim": 16, "depth": (1, 1), "dim_head": 8, "dim_conv_stem": 16}
        | {"window_size": 4},
    ),
    "max_vit_registers": (
        "max_vit_with_registers.MaxViT",
        (3, 64, 64),
        {"num_classes": 10, "dim": 16, "depth": (1, 1), "dim_head": 8, "dim_conv_stem": 16}
        | {"window_size": 4},
    ),
    "mobile_vit": (
        "mobile_vit.MobileViT",
        (3, 64, 64),
        {"image_size": (64, 64), "dims": [24, 32, 40], "num_classes": 10, "depths": (1, 1, 1)}
        | {"channels": [8, 16, 24, 24, 32, 32, 40, 40, 48, 48, 64]},
    ),
    "mp3": ("mp3.ViT", PIXELS, IMAGE),
    "nest": (
        "nest.NesT",
        (3, 64, 64),
        {"image_size": 64, "patch_size": 4, "num_classes": 10, "dim": 16, "heads": 2}
        | {"num_hierarchies": 3, "block_repeats": (1, 1, 1), "mlp_mult": 2, "dim_head": 8},
    ),
    "parallel_vit": ("parallel_vit.ViT", PIXELS, IMAGE),
    "pit": ("pit.PiT", (3, 64, 64), IMAGE | {"image_size": 64, "depth": (1, 1)}),
    "regionvit": (
        "regionvit.RegionViT",
        (3, 64, 64),
        {"num_classes": 10, "dim": (32, 32, 64, 64), "depth": (1, 1, 1, 1), "window_size": 2}
        | {"use_peg": True},
    ),
    "rvt": ("rvt.RvT", PIXELS, IMAGE),
    "scalable_vit": (
        "scalable_vit.ScalableViT",
        (3, 64, 64),
        {"num_classes": 10, "dim": 16, "heads": (1, 2, 2, 4), "depth": (1, 1, 1, 1)}
        | {"ssa_dim_key": (8, 8, 8, 8), "reduction_factor": (4, 2, 2, 1), "window_size": (4, 4, None, None)}
        | {"iwsa_dim_key": 8, "iwsa_dim_value": 8, "ssa_dim_value": 8},
    ),
    "sep_vit": (
        "sep_vit.SepViT",
        (3, 224, 224),  # its windows are 7 x 7, whatever it is told
        {"num_classes": 10, "dim": 16, "dim_head": 8, "heads": (1, 2, 2, 4), "depth": (1, 1, 1, 1)},
    ),
    "simple_flash_vit": ("simple_flash_attn_vit.SimpleViT", PIXELS, IMAGE),
    "simple_flash_vit_3d": ("simple_flash_attn_vit_3d.SimpleViT", FRAMES, DEEP | VIDEO),
    "simple_uvit": ("simple_uvit.SimpleUViT", PIXELS, IMAGE),
    "simple_vit": ("simple_vit.SimpleViT", PIXELS, IMAGE),
    "simple_vit_1d": ("simple_vit_1d.SimpleViT", (3, 64), SERIES),
    "simple_vit_3d": ("simple_vit_3d.SimpleViT", FRAMES, DEEP | VIDEO),
    "simple_vit_attn_residual": ("simple_vit_attn_residual.SimpleViTAttnResidual", PIXELS, IMAGE),
    "simple_vit_fft": ("simple_vit_with_fft.SimpleViT", PIXELS, IMAGE | {"freq_patch_size": 8}),
    "simple_vit_hyper_connections": (
        "simple_vit_with_hyper_connections.SimpleViT",
        PIXELS,
        IMAGE | {"num_residual_streams": 2},
    ),
    "simple_vit_orthogonal_update": ("simple_vit_orthog_residual_update.SimpleViT", PIXELS, IMAGE),
    "simple_vit_patch_dropout": ("simple_vit_with_patch_dropout.SimpleViT", PIXELS, IMAGE),
    "simple_vit_qk_norm": ("simple_vit_with_qk_norm.SimpleViT", PIXELS, IMAGE),
    "simple_vit_registers": ("simple_vit_with_register_tokens.SimpleViT", PIXELS, IMAGE),
    "simple_vit_relative": ("simple_vit_with_relative_proj_pos_bias.SimpleViT", PIXELS, IMAGE),
    "simple_vit_sparse_gating": (
        "simple_vit_with_sparse_gating.SimpleViTWithSparseGating",
        PIXELS,
        IMAGE,
    ),
    "simple_vit_specialized_cls": (
        "simple_vit_with_specialized_cls.SimpleViT",
        PIXELS,
        IMAGE | {"specialize_qkv_depth": 1},
    ),
    "simple_vit_value_residual": ("simple_vit_with_value_residual.SimpleViT", PIXELS, IMAGE),
    "t2t": ("t2t.T2TViT", PIXELS, DEEP | {"image_size": 32, "t2t_layers": ((7, 4), (3, 2))}),
    "twins_svt": (
        "twins_svt.TwinsSVT",
        (3, 64, 64),
        {"num_classes": 10, "s1_emb_dim": 16, "s2_emb_dim": 32, "s3_emb_dim": 48, "s4_emb_dim": 64}
        | {"s1_local_patch_size": 4, "s2_local_patch_size": 4, "s3_local_patch_size": 4}
        | {"s4_local_patch_size": 2, "s1_global_k": 4, "s2_global_k": 4, "s3_global_k": 4}
        | {"s4_global_k": 2, "s3_depth": 1, "s4_depth": 1},
    ),
    "vat_vit": ("vat.ViT", PIXELS, IMAGE | {"num_register_tokens": 2}),
    "vit": ("vit.ViT", PIXELS, IMAGE),
    "vit_1d": ("vit_1d.ViT", (3, 64), SERIES),
    "vit_3d": ("vit_3d.ViT", FRAMES, DEEP | VIDEO),
    "vit_5": ("vit_5.ViT", PIXELS, IMAGE),
    "vit_decorr": ("vit_with_decorr.ViT", PIXELS, IMAGE),
    "vit_detpool": ("vit_detpool.ViTDetPool", PIXELS, IMAGE),
    "vit_keel": ("vit_with_keel_post_ln.ViT", PIXELS, IMAGE),
    "vit_nd": ("vit_nd.ViTND", (3, 4, 16, 16), ND),
    "vit_nd_pope": ("vit_nd_pope.ViTND", (3, 4, 16, 16), ND),
    "vit_nd_rotary": ("vit_nd_rotary.ViTND", (3, 4, 16, 16), ND),
    "vit_patch_dropout": ("vit_with_patch_dropout.ViT", PIXELS, IMAGE),
    "vit_patch_merger": ("vit_with_patch_merger.ViT", PIXELS, IMAGE | {"patch_merge_num_tokens": 4}),
    "vit_small_dataset": ("vit_for_small_dataset.ViT", PIXELS, IMAGE),
    "vivit": (
        "vivit.ViViT",
        FRAMES,
        WIDTHS | VIDEO | {"dim_head": 12, "spatial_depth": 1, "temporal_depth": 1, "use_flash_attn": False},
    ),
    "vivit_factorized": (
        "vivit.ViViT",
        FRAMES,
        WIDTHS
        | VIDEO
        | {"dim_head": 12, "spatial_depth": 1, "temporal_depth": 1}
        | {"variant": "factorized_self_attention"},
    ),
    "vivit_moss": (
        "vivit_with_moss.ViViT",
        FRAMES,
        WIDTHS | VIDEO | {"dim_head": 12, "spatial_depth": 1, "temporal_depth": 1, "moss_hidden_dim": 16},
    ),
    "wwt": ("wwt.WWT", PIXELS, IMAGE | {"num_slots": 4}),
    "xcit": ("xcit.XCiT", PIXELS, IMAGE | {"cls_depth": 1}),
    # refused, see below
    "ats_vit": ("ats_vit.ViT", PIXELS, IMAGE | {"max_tokens_per_depth": (8, 4)}),
    "na_vit_nested": ("na_vit_nested_tensor.NaViT", PIXELS, IMAGE),
    "na_vit_nested_3d": (
        "na_vit_nested_tensor_3d.NaViT",
        FRAMES,
        IMAGE | {"max_frames": 4, "frame_patch_size": 2},
    ),
}


def _build(path: str, shape: tuple[int, ...], options: dict[str, Any]) -> nn.Module:
    module, _, name = path.rpartition(".")
    cls = getattr(importlib.import_module(f"vit_pytorch.{module}"), name)
    return recorded(cls(**options).eval(), *shape)


def _adapter() -> nn.Module:
    """A frozen ViT with memories and a class token of their own."""
    from vit_pytorch.learnable_memory_vit import Adapter, ViT

    return recorded(Adapter(vit=ViT(**IMAGE), num_classes=5).eval(), *PIXELS)


def _efficient() -> nn.Module:
    """The ViT that takes any transformer: here one of torch's."""
    from vit_pytorch.efficient import ViT

    layer = nn.TransformerEncoderLayer(48, 4, 96, batch_first=True, norm_first=True)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    model = ViT(image_size=32, patch_size=8, num_classes=10, dim=48, transformer=encoder)
    return recorded(model.eval(), *PIXELS)


def _native_resolution() -> nn.Module:
    """Takes a list of images of any size, packed into sequences."""
    from vit_pytorch.na_vit import NaViT

    model = NaViT(**IMAGE).eval()
    model.example_input_array = ([torch.zeros(3, 32, 32), torch.zeros(3, 16, 24)],)
    return model


def _normalized() -> nn.Module:
    """Its parametrised weights made plain, as fxprune asks for."""
    from vit_pytorch.normalized_vit import nViT

    model = nViT(**IMAGE).eval()
    for module in model.modules():
        if parametrize.is_parametrized(module):
            parametrize.remove_parametrizations(module, "weight")
    return recorded(model, *PIXELS)


def _audio() -> nn.Module:
    """A spectrogram transformer over a given spectrogram: time, frequency."""
    from vit_pytorch.vaat import AST

    model = AST(dim=48, depth=2, mlp_dim=96, num_classes=10, dim_head=12, heads=4, accept_spec=True)
    return recorded(model.eval(), 64, 32)


def _vaat() -> nn.Module:
    return _build("vaat.ViT", PIXELS, IMAGE | {"num_register_tokens": 2})


REFUSED: dict[str, str] = {
    # torch.unique of the tokens that it samples
    "ats_vit": "data-dependent",
    # a nested (jagged) tensor of a list of images or videos
    "na_vit_nested": "data-dependent",
    "na_vit_nested_3d": "data-dependent",
    # flex_attention, whatever the mask
    "vit_nd": "FlexAttention does not support backward on CPU",
    "vit_nd_pope": "FlexAttention does not support backward on CPU",
    "vit_nd_rotary": "FlexAttention does not support backward on CPU",
}


def refused(name: str) -> tuple[nn.Module, tuple[Any, ...]]:
    """A model that torch.export refuses, and the arguments that it runs on."""
    path, shape, options = ROWS[name]
    samples: Any = torch.randn(2, *shape)
    return _build(path, shape, options), (list(samples) if name.startswith("na_vit") else samples,)


MODELS: dict[str, Callable[[], nn.Module]] = {
    **{f"vit_pytorch_{n}": partial(_build, *row) for n, row in ROWS.items() if n not in REFUSED},
    "vit_pytorch_adapter": _adapter,
    "vit_pytorch_efficient": _efficient,
    "vit_pytorch_normalized_vit": _normalized,
    "vit_pytorch_na_vit": _native_resolution,
    # these two need torchaudio
    "vit_pytorch_audio": _audio,
    "vit_pytorch_vaat_vit": _vaat,
}
