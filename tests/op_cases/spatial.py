"""Tensors made from sizes, pixels, Fourier transforms."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from op_cases.case import BOTH, EXPORT, Cases, indices

aten = torch.ops.aten


def source_cases(case: Cases) -> None:
    """Tensors made from sizes alone."""
    for name in ("zeros", "ones"):
        case(name, lambda a, name=name: a + getattr(torch, name)(4, 6), (4, 6), captures=EXPORT)
    case("zeros", lambda a: a + torch.zeros(2, 4, 5, 6, 8), (2, 4, 5, 6, 8), captures=EXPORT)
    for name in ("empty", "rand", "randn"):
        case(name, lambda a, name=name: a + getattr(torch, name)(4, 6), (4, 6), values=False, captures=EXPORT)
    case("full", lambda a: a + torch.full((a.size(0), a.size(1)), 2.0), (4, 6))
    case("new_zeros", lambda a: a + a.new_zeros(4, 6), (4, 6), captures=BOTH)
    case("new_ones", lambda a: a + a.new_ones((4, 6)), (4, 6))
    case("new_empty", lambda a: a + a.new_empty(4, 6), (4, 6), values=False)
    case("new_full", lambda a: a + a.new_full((4, 6), 2.0), (4, 6))
    case("zeros", lambda a: a + torch.zeros(a.shape[0], a.shape[1]), (4, 6))
    case("arange", lambda a: a + torch.arange(a.shape[1]), (4, 6))
    case("arange", lambda a: a + torch.arange(6.0), (4, 6), captures=EXPORT)
    case("linspace", lambda a: a + torch.linspace(0, 1, a.shape[1]), (4, 6))
    case("logspace", lambda a: a + torch.logspace(0, 1, a.shape[1]), (4, 6))
    case("range", lambda a: a + aten.range.default(1, a.shape[1]), (4, 6))
    case("eye", lambda a: a + torch.eye(a.shape[1]), (4, 6, 6))
    case("scalar_tensor", lambda a: a + torch.scalar_tensor(a.shape[1]), (4, 6))
    case("one_hot", lambda i: F.one_hot(i, 7), indices(4, 5, below=7), captures=BOTH)


def fourier_cases(case: Cases) -> None:
    """What is transformed is frozen; what lies beside it shrinks."""
    fft = torch.fft
    for name in ["fft", "ifft", "rfft", "irfft", "hfft", "ihfft"]:
        function = getattr(fft, name)
        case(f"fft_{name}", function, (4, 6))
        case(f"fft_{name}", partial(function, n=5, dim=1, norm="ortho"), (4, 6, 5), captures=BOTH)
    for name in ["fft2", "ifft2", "rfft2", "irfft2"]:
        function = getattr(fft, name)
        case(f"fft_{name}", function, (4, 6, 5))
        case(f"fft_{name}", partial(function, dim=(1, 2)), (4, 6, 5, 7), captures=BOTH)
        case(f"fft_{name}", partial(function, s=(4, 8), dim=(1, 3)), (4, 6, 5, 7))
    for name in ["fftn", "ifftn", "rfftn", "irfftn"]:
        function = getattr(fft, name)
        case(f"fft_{name}", function, (4, 6), frozen=True)
        case(f"fft_{name}", partial(function, s=(4, 4, 4)), (4, 6, 5, 7))
        case(f"fft_{name}", partial(function, dim=(0, 2)), (4, 6, 5, 7), captures=BOTH)
    for name in ["fftshift", "ifftshift"]:
        function = getattr(fft, name)
        case(f"fft_{name}", function, (4, 6), frozen=True)
        case(f"fft_{name}", partial(function, dim=1), (4, 6, 5), captures=BOTH)
        case(f"fft_{name}", partial(function, dim=(0, -1)), (4, 6, 5))


def spatial_cases(case: Cases) -> None:
    """Channels pass through, pixels stay."""
    for n in (1, 2, 3):
        shape = (2, 6, *[4] * n)
        case(f"max_pool{n}d", lambda a, n=n: getattr(F, f"max_pool{n}d")(a, 2), shape)
        case(f"avg_pool{n}d", lambda a, n=n: getattr(F, f"avg_pool{n}d")(a, 2, stride=1), shape)
        case(f"lp_pool{n}d", lambda a, n=n: getattr(F, f"lp_pool{n}d")(a, 2, 2), shape)
        case(f"adaptive_avg_pool{n}d", lambda a, n=n: getattr(F, f"adaptive_avg_pool{n}d")(a, 2), shape)
        case(f"adaptive_max_pool{n}d", lambda a, n=n: getattr(F, f"adaptive_max_pool{n}d")(a, 2), shape)
    image = (2, 6, 4, 5)
    case("max_pool2d", lambda a: F.max_pool2d(a, 3, 2, padding=1), image, captures=BOTH)
    case("avg_pool2d", lambda a: F.avg_pool2d(a, 2), image, captures=BOTH)
    case("adaptive_avg_pool2d", lambda a: F.adaptive_avg_pool2d(a, 1), image, captures=BOTH)
    case("upsample_nearest2d", lambda a: aten.upsample_nearest2d.default(a, [8, 10]), image)
    case("upsample_bilinear2d", lambda a: aten.upsample_bilinear2d.default(a, [8, 10], False), image)
    case("upsample_bicubic2d", lambda a: aten.upsample_bicubic2d.default(a, [8, 10], False), image)
    for name in ("_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa"):
        case(name, lambda a, name=name: getattr(aten, name).default(a, [8, 10], False), image)
    case("_upsample_nearest_exact2d", lambda a: aten._upsample_nearest_exact2d.default(a, [8, 10]), image)
    for dims in (1, 3):
        for name in ("upsample_nearest", "_upsample_nearest_exact"):
            op = getattr(aten, f"{name}{dims}d").default
            case(f"{name}{dims}d", lambda a, op=op, dims=dims: op(a, [7] * dims), (2, 6, *[4] * dims))
    case("upsample_linear1d", lambda a: aten.upsample_linear1d.default(a, [7], False), (2, 6, 4))
    volume = (2, 6, 4, 3, 3)
    case("upsample_trilinear3d", lambda a: aten.upsample_trilinear3d.default(a, [5, 4, 6], False), volume)
    case("interpolate", lambda a: F.interpolate(a, scale_factor=2), image)
    case("interpolate", lambda a: F.interpolate(a, size=(3, 3), mode="bilinear"), image)
    case("interpolate", lambda a: F.interpolate(a, 7, mode="linear"), (2, 6, 4))
    case("interpolate", nn.Upsample(scale_factor=2), image)
    case("grid_sample", lambda a, g: F.grid_sample(a, g, align_corners=False), image, (2, 3, 3, 2))
    case("pad", lambda a: F.pad(a, (1, 2)), (4, 6), captures=BOTH)
    case("pad", lambda a: F.pad(a, (0, 0, 1, 0, 2, 2), value=3.0), (4, 6, 5))
    case("pad", lambda a: F.pad(a, (-1, 0)), (4, 6))
    for mode in ("reflect", "replicate", "circular"):
        case("pad", lambda a, mode=mode: F.pad(a, (2, 1), mode=mode), (4, 6, 5))
    case("reflection_pad", nn.ReflectionPad1d(2), (4, 6, 5))
    for n in (1, 2, 3):
        for kind in ("replication", "reflection"):
            pad = getattr(aten, f"{kind}_pad{n}d").default
            sizes = (4, 6, 5, 3, 4)[: n + 2] if n > 1 else (4, 6, 5)
            case(f"{kind}_pad{n}d", lambda a, pad=pad, n=n: pad(a, [1] * 2 * n), sizes)
    case("_threshold", lambda a: F.threshold(a, 0.1, 0.0), (4, 6))
    case("pad", nn.ZeroPad2d((1, 0, 0, 2)), image)
    case("constant_pad_nd", lambda a: torch.constant_pad_nd(a, (1, 2), 1.0), (4, 6))
    case("pixel_shuffle", lambda a: F.pixel_shuffle(a, 2), (2, 12, 4, 5), captures=BOTH)
    case("pixel_unshuffle", lambda a: F.pixel_unshuffle(a, 2), (2, 3, 4, 6), captures=BOTH)
    case("channel_shuffle", lambda a: F.channel_shuffle(a, 3), (2, 12, 4, 5))
    case("unfold", lambda a: F.unfold(a, 2, stride=2), image)
    case("unfold", lambda a: a.unfold(1, 3, 2), (4, 7, 5), captures=BOTH)
    case("unfold", lambda a: a.unfold(-2, 3, 2), (4, 7, 5))
    case("unfold", lambda a: a.unfold(dimension=-1, size=2, step=2), (4, 6))
    case("im2col", lambda a: aten.im2col.default(a, [2, 2], [1, 1], [0, 0], [2, 2]), image)
    case("fold", lambda a: F.fold(a, (4, 4), 2, stride=2), (2, 24, 4))
    case("col2im", lambda a: aten.col2im.default(a, [4, 4], [2, 2], [1, 1], [0, 0], [2, 2]), (2, 24, 4))
