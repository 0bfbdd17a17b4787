"""Ops on pixels: channels pass through, positions are frozen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from fxprune.rules.axes import PIXELS, Axis, Product, Sum, atom, frozen
from fxprune.rules.laws import LAYOUT
from fxprune.rules.registry import DEFAULT_RULES, Flow, Op, Typed, at, rule


def _spatial_axes(n: int) -> Callable[..., Flow]:
    def spatial_axes(input: Typed, *args: object, result: Typed | Sequence[Typed], **options: object) -> Flow:
        """b c h w -> b c h' w' (and the indices, where the op returns them too)"""
        first = result if isinstance(result, Typed) else result[0]
        pixels = tuple(frozen(size, PIXELS) for size in first.shape[-n:])
        out = (*input.axes[:-n], *pixels)
        reasons = [(axis, PIXELS) for axis in input.axes[-n:]]
        return Flow(out if isinstance(result, Typed) else [out] * len(result), frozen=reasons)

    return spatial_axes


for _n in (1, 2, 3):
    for _op in ("avg_pool", "adaptive_avg_pool"):
        DEFAULT_RULES.add(f"{_op}{_n}d", Op(_spatial_axes(_n), linear=LAYOUT))
    for _op in ("max_pool", "adaptive_max_pool", "lp_pool"):
        DEFAULT_RULES.add(f"{_op}{_n}d", _spatial_axes(_n))
    for _op in ("max_pool", "adaptive_max_pool"):
        DEFAULT_RULES.add(f"{_op}{_n}d_with_indices", _spatial_axes(_n))
    if _n > 1:
        DEFAULT_RULES.add(f"fractional_max_pool{_n}d", _spatial_axes(_n))
        DEFAULT_RULES.add(f"fractional_max_pool{_n}d_with_indices", _spatial_axes(_n))
    for _op in ("upsample_nearest", "_upsample_nearest_exact"):
        DEFAULT_RULES.add(f"{_op}{_n}d", Op(_spatial_axes(_n), linear=LAYOUT))
DEFAULT_RULES.add("upsample_linear1d", Op(_spatial_axes(1), linear=LAYOUT))
for _op in ("upsample_bilinear2d", "upsample_bicubic2d", "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa"):
    DEFAULT_RULES.add(_op, Op(_spatial_axes(2), linear=LAYOUT))
DEFAULT_RULES.add("upsample_trilinear3d", Op(_spatial_axes(3), linear=LAYOUT))


@rule("interpolate", linear=LAYOUT)
def interpolate_axes(input: Typed, *args: object, result: Typed, **options: object) -> Flow:
    """b c h w -> b c h' w'"""
    return _spatial_axes(input.ndim - 2)(input, result=result)


@rule("grid_sample", "grid_sampler", "grid_sampler_2d", "grid_sampler_3d")
def grid_sample_axes(input: Typed, grid: Typed, *options: object, **more: object) -> Flow:
    """b c h w, b h' w' 2 -> b c h' w' (and in three dimensions)"""
    batch, *places, numbers = grid.axes
    reasons = [(axis, PIXELS) for axis in (*input.axes[2:], *places, numbers)]
    return Flow((*input.axes[:2], *places), same=[(input.axes[0], batch)], frozen=reasons)


@rule("affine_grid", "affine_grid_generator")
def affine_grid_axes(
    theta: Typed, size: Sequence[int], *options: object, result: Typed, **more: object
) -> Flow:
    """b 2 3 -> b h w 2, all frozen but b: what the size says of channels is not read"""
    pixels = (frozen(n, PIXELS) for n in result.shape[1:])
    reasons = [(axis, "a transform of places") for axis in theta.axes[1:]]
    spelled = [theta.axes[0], *[None] * (len(size) - 1)]
    return Flow((theta.axes[0], *pixels), frozen=reasons, sizes={"size": spelled})


@rule("max_unpool1d", "max_unpool2d", "max_unpool3d")
def max_unpool_axes(input: Typed, indices: Typed, *options: object, result: Typed, **more: object) -> Flow:
    """b c h w, b c h w -> b c h' w'"""
    n = 3 if input.ndim > 4 else input.ndim - 2
    pixels = tuple(frozen(size, PIXELS) for size in result.shape[-n:])
    reasons = [(axis, PIXELS) for axis in input.axes[-n:]]
    return Flow((*input.axes[:-n], *pixels), list(zip(input.axes, indices.axes, strict=True)), reasons)


@rule("local_response_norm")
def local_response_norm_axes(input: Typed, *options: object, **more: object) -> Flow:
    """b c ... -> b c ..., c frozen"""
    return Flow(input.axes, frozen=[(input.axes[1], "each is divided by its neighbours")])


@rule("constant_pad_nd")
def constant_pad_axes(input: Typed, pad: Sequence[int], value: object = 0) -> Flow:
    """... n -> ... [before | n | after]"""
    return pad_axes(input, pad, value=value)


@rule("pad")
def pad_axes(input: Typed, pad: Sequence[int], mode: object = "constant", value: object = None) -> Flow:
    """... n -> ... [before | n | after]; negative padding cuts, padding with copies freezes"""
    if isinstance(mode, str) and mode != "constant":
        return replace(copying_pad_axes(input, pad), linear=LAYOUT)
    out: list[Axis] = list(input.axes)
    reasons: list[tuple[Axis, str]] = []
    for i, (before, after) in enumerate(_pairs(pad), start=1):
        if before == after == 0:
            continue
        if before < 0 or after < 0:
            reasons.append((out[-i], "cut by a negative padding"))
            out[-i] = frozen(input.shape[-i] + before + after, "cut by a negative padding")
            continue
        out[-i] = Sum.of((frozen(before, "padding"), input.axes[-i], frozen(after, "padding")))
    return Flow(tuple(out), frozen=reasons, linear="" if value else LAYOUT)


@rule(
    *("reflection_pad", "reflection_pad1d", "reflection_pad2d", "reflection_pad3d"),
    *("replication_pad1d", "replication_pad2d", "replication_pad3d"),
    linear=LAYOUT,
)
def copying_pad_axes(input: Typed, padding: Sequence[int]) -> Flow:
    """... n -> ... m, n frozen: what is added are copies of its elements"""
    out, reasons = list(input.axes), []
    for i, (before, after) in enumerate(_pairs(padding), start=1):
        if before or after:
            reasons.append((out[-i], "padded with copies"))
            out[-i] = frozen(input.shape[-i] + before + after, "padded with copies")
    return Flow(tuple(out), frozen=reasons)


def _pairs(pad: Sequence[int]) -> list[tuple[int, int]]:
    return list(zip(pad[::2], pad[1::2], strict=True))


@rule("pixel_shuffle", linear=LAYOUT)
def pixel_shuffle_axes(input: Typed, upscale_factor: int) -> Flow:
    """b (c r s) h w -> b c (h r) (w s)"""
    *batch, channels, h, w = input.axes
    r = s = upscale_factor
    c = atom(channels.size // (r * s))
    rows, columns = frozen(r, PIXELS), frozen(s, PIXELS)
    out = (*batch, c, Product.of((h, rows)), Product.of((w, columns)))
    return Flow(out, same=[(channels, Product.of((c, rows, columns)))])


@rule("pixel_unshuffle", linear=LAYOUT)
def pixel_unshuffle_axes(input: Typed, downscale_factor: int) -> Flow:
    """b c (h r) (w s) -> b (c r s) h w"""
    *batch, c, height, width = input.axes
    r, s = frozen(downscale_factor, PIXELS), frozen(downscale_factor, PIXELS)
    h = frozen(height.size // downscale_factor, PIXELS)
    w = frozen(width.size // downscale_factor, PIXELS)
    return Flow((*batch, Product.of((c, r, s)), h, w), frozen=[(height, PIXELS), (width, PIXELS)])


@rule("channel_shuffle")
def channel_shuffle_axes(input: Typed, groups: int) -> Flow:
    """b (g c) ... -> b (c g) ..."""
    g = frozen(groups, "shuffled with its group")
    c = atom(input.shape[1] // groups)
    same = [(input.axes[1], Product.of((g, c)))]
    return Flow((input.axes[0], Product.of((c, g)), *input.axes[2:]), same)


@rule("unfold", "im2col", linear=LAYOUT)
def unfold_axes(input: Typed, *args: int, result: Typed, **options: int) -> Flow:
    """b c h w -> b (c k) l; or, of a tensor along a dimension, ... n -> ... l k"""
    if result.ndim == input.ndim + 1:
        d = at(args[0] if args else options["dimension"], input.ndim)
        axes = list(input.axes)
        axes[d] = frozen(result.shape[d], PIXELS)
        return Flow((*axes, frozen(result.shape[-1], PIXELS)), frozen=[(input.axes[d], PIXELS)])
    batch, c, *pixels = input.axes
    k = frozen(result.shape[1] // c.size, "kernel")
    out = (batch, Product.of((c, k)), frozen(result.shape[2], PIXELS))
    return Flow(out, frozen=[(axis, PIXELS) for axis in pixels])


@rule("fold", "col2im", linear=LAYOUT)
def fold_axes(input: Typed, *args: object, result: Typed, **options: object) -> Flow:
    """b (c k) l -> b c h w"""
    batch, rows, length = input.axes
    c = atom(result.shape[1])
    k = frozen(rows.size // c.size, "kernel")
    out = (batch, c, *(frozen(size, PIXELS) for size in result.shape[2:]))
    return Flow(out, same=[(rows, Product.of((c, k)))], frozen=[(length, PIXELS)])
