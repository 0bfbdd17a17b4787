"""spandrel: networks that restore and enlarge images, as their authors wrote them."""

from __future__ import annotations

from typing import Any

from field.row import Row, noise, row

__all__ = ["MODELS"]

ARCH = "spandrel.architectures."
WINDOWS: dict[str, Any] = {"img_size": 16, "embed_dim": 24, "depths": [2], "num_heads": [4], "window_size": 8}
ENLARGE: dict[str, Any] = {"upscale": 2, "upsampler": "pixelshuffle"}
IMAGE = noise(3, 16, 16)

MODELS: dict[str, Row] = {
    "spandrel_swinir": row(ARCH + "SwinIR.SwinIR", WINDOWS | ENLARGE, IMAGE),
    "spandrel_swin2sr": row(ARCH + "Swin2SR.Swin2SR", WINDOWS | ENLARGE, IMAGE),
    "spandrel_hat": row(ARCH + "HAT.HAT", WINDOWS | ENLARGE | {"squeeze_factor": 6, "num_feat": 16}, IMAGE),
    "spandrel_dat": row(
        ARCH + "DAT.DAT",
        ENLARGE | {"img_size": 16, "embed_dim": 24, "split_size": [4, 4], "depth": [2], "num_heads": [4]},
        IMAGE,
    ),
    "spandrel_drct": row(ARCH + "DRCT.DRCT", WINDOWS | ENLARGE | {"gc": 8}, IMAGE),
    "spandrel_nafnet": row(
        ARCH + "NAFNet.NAFNet",
        {"width": 8, "middle_blk_num": 1, "enc_blk_nums": [1, 1], "dec_blk_nums": [1, 1]},
        IMAGE,
    ),
    "spandrel_uformer": row(
        ARCH + "Uformer.Uformer",
        {"img_size": 128, "embed_dim": 8, "depths": [1] * 9, "num_heads": [1, 2, 4, 4, 4, 4, 4, 2, 1]},
        noise(3, 128, 128),
    ),
    "spandrel_scunet": row(
        ARCH + "SCUNet.SCUNet", {"config": [1] * 7, "dim": 64, "input_resolution": 64}, noise(3, 64, 64)
    ),
    "spandrel_omnisr": row(ARCH + "OmniSR.OmniSR", {"num_feat": 16, "res_num": 1, "up_scale": 2}, IMAGE),
    "spandrel_craft": row(
        ARCH + "CRAFT.CRAFT",
        {"embed_dim": 24, "depths": [1], "num_heads": [6], "upscale": 2},
        IMAGE,
    ),
    "spandrel_retinexformer": row(ARCH + "RetinexFormer.RetinexFormer", {"n_feat": 16, "stage": 1}, IMAGE),
    "spandrel_fftformer": row(
        ARCH + "FFTformer.FFTformer",
        {"dim": 12, "num_blocks": [1, 1, 1], "num_refinement_blocks": 1},
        noise(3, 32, 32),
    ),
    "spandrel_ditn": row(
        ARCH + "DITN.DITN",
        {"dim": 24, "ITL_blocks": 1, "SAL_blocks": 1, "patch_size": 8, "upscale": 2},
        IMAGE,
    ),
    "spandrel_safmn": row(ARCH + "SAFMN.SAFMN", {"dim": 16, "n_blocks": 1, "upscaling_factor": 2}, IMAGE),
    "spandrel_plksr": row(ARCH + "PLKSR.PLKSR", {"dim": 16, "n_blocks": 1, "upscaling_factor": 2}, IMAGE),
    "spandrel_span": row(
        ARCH + "SPAN.SPAN", {"num_in_ch": 3, "num_out_ch": 3, "feature_channels": 16, "upscale": 2}, IMAGE
    ),
    "spandrel_mixdehaze": row(
        ARCH + "MixDehazeNet.MixDehazeNet",
        {"embed_dims": [8, 16, 24, 16, 8], "depths": [1] * 5},
        noise(3, 64, 64),
    ),
}
