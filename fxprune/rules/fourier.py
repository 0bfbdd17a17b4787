"""Fourier transforms: each frequency sums over all positions, so what is transformed is frozen."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fxprune.graph.nests import leaves
from fxprune.rules.axes import frozen
from fxprune.rules.registry import Flow, Typed, at, dims_of, rule

_WHY = "a Fourier transform sums over it"


def _transformed(input: Typed, result: Typed, dims: Iterable[int]) -> Flow:
    out = list(input.axes)
    for d in dims:
        out[d] = frozen(result.shape[d], _WHY)
    return Flow(tuple(out), frozen=[(a, _WHY) for a, b in zip(input.axes, out, strict=True) if a is not b])


@rule("fft_fft", "fft_ifft", "fft_rfft", "fft_irfft", "fft_hfft", "fft_ihfft")
def fft_axes(
    input: Typed, n: int | None = None, dim: int = -1, norm: str | None = None, *, result: Typed
) -> Flow:
    """a n c -> a k c, n and k frozen"""
    return _transformed(input, result, [at(dim, input.ndim)])


@rule("fft_fft2", "fft_ifft2", "fft_rfft2", "fft_irfft2")
def fft2_axes(
    input: Typed,
    s: Sequence[int] | None = None,
    dim: Sequence[int] = (-2, -1),
    norm: str | None = None,
    *,
    result: Typed,
) -> Flow:
    """a h w -> a k l, all frozen but a"""
    return _transformed(input, result, dims_of(list(dim), input.ndim))


@rule("fft_fftn", "fft_ifftn", "fft_rfftn", "fft_irfftn")
def fftn_axes(
    input: Typed,
    s: Sequence[int] | None = None,
    dim: Sequence[int] | None = None,
    norm: str | None = None,
    *,
    result: Typed,
) -> Flow:
    """a d h w -> a j k l, all frozen but a; without `dim`, the last as many as `s` has sizes, or all"""
    if dim is None and s is not None:
        dim = range(-len(s), 0)
    return _transformed(input, result, dims_of(None if dim is None else list(dim), input.ndim))


@rule("fft_fftshift", "fft_ifftshift")
def fftshift_axes(input: Typed, dim: int | Sequence[int] | None = None) -> Flow:
    """a n c -> a n c, n frozen: its frequencies change places"""
    dims = dims_of(list(dim) if isinstance(dim, Sequence) else dim, input.ndim)
    return Flow(input.axes, frozen=[(input.axes[d], "frequencies change places") for d in dims])


@rule("stft")
def stft_axes(input: Typed, *options: object, result: Typed, **more: object) -> Flow:
    """b t -> b f n, all frozen but b"""
    tensors = [input, *leaves([options, more], Typed)]
    batched = int(result.shape[:1] == input.shape[:1] and input.ndim > 1)
    reasons = [(axis, _WHY) for t in tensors for axis in (t.axes[batched:] if t is input else t.axes)]
    return Flow((*input.axes[:batched], *(frozen(n, _WHY) for n in result.shape[batched:])), frozen=reasons)
