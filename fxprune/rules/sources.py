"""Ops that make a tensor from sizes alone."""

from __future__ import annotations

from collections.abc import Sequence

from fxprune.rules.axes import Axis, atom, frozen
from fxprune.rules.elementwise import elementwise_axes
from fxprune.rules.registry import Flow, Typed, rule


def _filled(shape: Sequence[int]) -> tuple[Axis, ...]:
    return tuple(atom(size) for size in shape)


@rule("zeros", "ones", "empty", "rand", "randn")
def zeros_axes(size: Sequence[int], **options: object) -> Flow:
    """-> n m: the same value everywhere, so any element can go"""
    out = _filled(size)
    return Flow(out, sizes={"size": out})


@rule("full")
def full_axes(size: Sequence[int], fill_value: object, **options: object) -> Flow:
    """-> n m"""
    return zeros_axes(size)


@rule("new_zeros", "new_ones", "new_empty")
def new_zeros_axes(input: object, size: Sequence[int], **options: object) -> Flow:
    """-> n m"""
    return zeros_axes(size)


@rule("new_full")
def new_full_axes(input: object, size: Sequence[int], fill_value: object, **options: object) -> Flow:
    """-> n m"""
    return zeros_axes(size)


@rule("arange", "linspace", "logspace", "range")
def arange_axes(*args: object, result: Typed, **options: object) -> Flow:
    """-> n, of which the kept numbers are selected: the frequencies of a sine embedding"""
    return Flow(tuple(atom(size) for size in result.shape), select_result=True)


@rule(
    *("eye", "scalar_tensor", "randint", "randperm", "tril_indices", "triu_indices", "empty_strided"),
    *("hann_window", "hamming_window", "blackman_window", "bartlett_window", "kaiser_window"),
    *("fft_fftfreq", "fft_rfftfreq"),
)
def eye_axes(*args: object, result: Typed, **options: object) -> Flow:
    """-> n m, frozen: each element has a value of its own"""
    return Flow(tuple(frozen(size, "it numbers positions") for size in result.shape))


@rule("one_hot")
def one_hot_axes(tensor: Typed, num_classes: int = -1, *, result: Typed) -> Flow:
    """... -> ... n, n frozen"""
    return Flow((*tensor.axes, frozen(result.shape[-1], "it numbers positions")))


@rule("normal")
def normal_axes(
    mean: object, std: object = 1.0, size: Sequence[int] | None = None, **options: object
) -> Flow:
    """-> n m; or ... n, ... n -> ... n, around means of their own"""
    if size is not None:
        return zeros_axes(size)
    return elementwise_axes(mean, std)
