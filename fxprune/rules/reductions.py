"""Ops that reduce dimensions, or couple the elements along one."""

from __future__ import annotations

import math
from dataclasses import replace

from fxprune.rules import masked
from fxprune.rules.axes import ONE, Axis, Reason, Sum, atom, frozen
from fxprune.rules.elementwise import elementwise_axes
from fxprune.rules.laws import reduced_law
from fxprune.rules.registry import Axes, Dims, Flow, NotCovered, Typed, at, dims_of, rule


def without(input: Typed, dim: Dims, keepdim: bool) -> Axes:
    """Return the axes that are left when `dim` (None: every dimension) is reduced."""
    gone = dims_of(dim, input.ndim)
    if keepdim:
        return tuple(ONE if i in gone else axis for i, axis in enumerate(input.axes))
    return tuple(axis for i, axis in enumerate(input.axes) if i not in gone)


def summed(input: Typed, dim: Dims) -> list[Axis]:
    """Return the axes that a reduction over `dim` adds up."""
    return [input.axes[d] for d in dims_of(dim, input.ndim)]


def _law(input: Typed, dim: Dims, keepdim: bool, *, linear: bool = True) -> str:
    return reduced_law(input, dims_of(dim, input.ndim), keepdim=keepdim, linear=linear)


@rule("sum", "nansum")
def sum_axes(input: Typed, dim: Dims = None, keepdim: bool = False, dtype: object = None) -> Flow:
    """... n -> ..."""
    return replace(mean_axes(input, dim, keepdim), grows=1)


@rule("mean", masked=masked.mean)
def mean_axes(input: Typed, dim: Dims = None, keepdim: bool = False, dtype: object = None) -> Flow:
    """... n -> ... (a mean over a shrinking axis is taken over what is kept)"""
    law = _law(input, dim, keepdim)
    return Flow(without(input, dim, keepdim), reduced=summed(input, dim), linear=law, grows=0)


@rule("var", masked=masked.var)
@rule("std", masked=masked.std)
def var_axes(
    input: Typed,
    dim: Dims = None,
    unbiased: bool = True,
    keepdim: bool = False,
    *,
    correction: object = None,
) -> Flow:
    """... n -> ..."""
    if isinstance(dim, bool):
        raise NotCovered("its first argument is `unbiased`")
    gone = summed(input, dim)
    law = _law(input, dim, keepdim, linear=False)
    return Flow(without(input, dim, keepdim), reduced=gone, linear=law, centred=gone, grows=0)


@rule("var_mean", masked=masked.var_mean)
@rule("std_mean", masked=masked.std_mean)
def var_mean_axes(
    input: Typed,
    dim: Dims = None,
    unbiased: bool = True,
    keepdim: bool = False,
    *,
    correction: object = None,
) -> Flow:
    """... n -> ..., ..."""
    if isinstance(dim, bool):
        raise NotCovered("its first argument is `unbiased`")
    out = without(input, dim, keepdim)
    return Flow([out, out], reduced=summed(input, dim), grows=0)


@rule("norm")
def norm_axes(
    input: Typed, p: object = 2, dim: Dims = None, keepdim: bool = False, dtype: object = None
) -> Flow:
    """... n -> ... (zeros add nothing to a norm; a negative order is a kind of minimum)"""
    if isinstance(p, (int, float)) and p < 0:
        return extremum_axes(input, dim, keepdim)
    gone = summed(input, dim)
    law = _law(input, dim, keepdim, linear=False) if p in (2, "fro") else ""
    p = 2 if p in ("fro", None) else p
    grows = 1 / p if isinstance(p, (int, float)) and 0 < p < math.inf else None
    return Flow(without(input, dim, keepdim), reduced=gone, linear=law, rotates=gone, grows=grows)


@rule("linalg_vector_norm", "linalg_norm")
def vector_norm_axes(
    input: Typed, ord: object = 2, dim: Dims = None, keepdim: bool = False, *, dtype: object = None
) -> Flow:
    """... n -> ..."""
    return norm_axes(input, ord, dim, keepdim)


@rule("frobenius_norm")
def frobenius_norm_axes(input: Typed, dim: Dims = None, keepdim: bool = False) -> Flow:
    """... n -> ..."""
    return norm_axes(input, 2, dim, keepdim)


@rule("amax", "amin", "argmax", "argmin", "all", "any", "prod", "logsumexp", "nanmean")
def extremum_axes(input: Typed, dim: Dims = None, keepdim: bool = False) -> Flow:
    """... n -> ..., n frozen: a zero is not the same as a missing element"""
    why = Reason("max/min over it: a removed element is not a zero", kind="extremum")
    return Flow(without(input, dim, keepdim), frozen=[(input.axes[i], why) for i in dims_of(dim, input.ndim)])


@rule("max", "min")
def max_axes(input: Typed, dim: Dims = None, keepdim: bool = False) -> Flow:
    """... n -> ..., ... (values and indices; of the whole tensor: values alone)"""
    if isinstance(dim, Typed):  # torch.max(a, b)
        return elementwise_axes(input, dim)
    flow = extremum_axes(input, dim, keepdim)
    return flow if dim is None else Flow([flow.out, flow.out], frozen=flow.frozen)


@rule("topk")
def topk_axes(input: Typed, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> Flow:
    """... n -> ... k, ... k, n and k frozen"""
    d = at(dim, input.ndim)
    out = (*input.axes[:d], frozen(k, "the k largest"), *input.axes[d + 1 :])
    return Flow([out, out], frozen=[(input.axes[d], "searched for the k largest")])


@rule("softmax", "log_softmax", "softmin", "_softmax")
def softmax_axes(input: Typed, dim: int | None = None, *options: object, **more: object) -> Flow:
    """... n -> ... n, n frozen: leaving an element out is not the same as setting it to zero"""
    if dim is None:  # torch.nn.functional's own choice
        dim = 0 if input.ndim in (0, 1, 3) else 1
    return Flow(input.axes, frozen=[(input.axes[at(dim, input.ndim)], "softmax over it")])


@rule("cumsum", "cumprod", "logcumsumexp")
def scan_axes(input: Typed, dim: int, *, dtype: object = None) -> Flow:
    """... n -> ... n, n frozen"""
    return Flow(input.axes, frozen=[(input.axes[at(dim, input.ndim)], "its order matters")])


@rule("sort")
def sort_axes(input: Typed, dim: int = -1, *options: object, **more: object) -> Flow:
    """... n -> ... n, ... n, n frozen"""
    flow = scan_axes(input, dim)
    return Flow([flow.out, flow.out], frozen=flow.frozen)


@rule("argsort")
def argsort_axes(input: Typed, dim: int = -1, *options: object, **more: object) -> Flow:
    """... n -> ... n, n frozen"""
    return scan_axes(input, dim)


@rule("glu")
def glu_axes(input: Typed, dim: int = -1) -> Flow:
    """... [n | n] -> ... n"""
    d = at(dim, input.ndim)
    half: Axis = atom(input.axes[d].size // 2)
    out = (*input.axes[:d], half, *input.axes[d + 1 :])
    return Flow(out, same=[(input.axes[d], Sum.of((half, half)))])
