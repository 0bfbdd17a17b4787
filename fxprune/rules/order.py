"""Ops on the order of elements along a dimension: what is ordered is frozen, the rest passes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from fxprune.graph.nests import leaves
from fxprune.rules.axes import Axis, frozen
from fxprune.rules.reductions import extremum_axes, max_axes, scan_axes, without
from fxprune.rules.registry import (
    DEFAULT_RULES,
    Dims,
    Flow,
    NotCovered,
    Out,
    Result,
    Typed,
    at,
    dims_of,
    rule,
)

_WHY = "its order matters"


@rule("median", "nanmedian")
def median_axes(input: Typed, dim: int | None = None, keepdim: bool = False) -> Flow:
    """... n -> ..., ..., n frozen (values and indices; of the whole tensor: the value alone)"""
    return max_axes(input, dim, keepdim)


@rule("mode")
def mode_axes(input: Typed, dim: int = -1, keepdim: bool = False) -> Flow:
    """... n -> ..., ..., n frozen"""
    return max_axes(input, dim, keepdim)


@rule("kthvalue")
def kthvalue_axes(input: Typed, k: int, dim: int = -1, keepdim: bool = False) -> Flow:
    """... n -> ..., ..., n frozen"""
    return max_axes(input, dim, keepdim)


@rule("aminmax")
def aminmax_axes(input: Typed, *, dim: int | None = None, keepdim: bool = False) -> Flow:
    """... n -> ..., ..., n frozen"""
    flow = extremum_axes(input, dim, keepdim)
    return Flow([flow.out, flow.out], frozen=flow.frozen)


@rule("quantile", "nanquantile")
def quantile_axes(
    input: Typed, q: object, dim: int | None = None, keepdim: bool = False, *, interpolation: str = "linear"
) -> Flow:
    """... n, q -> q ..., n frozen"""
    flow = extremum_axes(input, dim, keepdim)
    return replace(flow, out=(*q.axes, *flow.axes)) if isinstance(q, Typed) else flow


@rule("cummax", "cummin")
def running_extremum_axes(input: Typed, dim: int) -> Flow:
    """... n -> ... n, ... n, n frozen"""
    flow = scan_axes(input, dim)
    return Flow([flow.out, flow.out], frozen=flow.frozen)


@rule("msort")
def msort_axes(input: Typed) -> Flow:
    """n ... -> n ..., n frozen"""
    return scan_axes(input, 0)


@rule("diff")
def diff_axes(
    input: Typed,
    n: int = 1,
    dim: int = -1,
    prepend: Typed | None = None,
    append: Typed | None = None,
    *,
    result: Typed,
) -> Flow:
    """... n -> ... n-1, n frozen"""
    d = at(dim, input.ndim)
    ends = [t for t in (prepend, append) if t is not None]
    reasons = [(t.axes[d], _WHY) for t in (input, *ends)]
    same = [(a, b) for t in ends for i, (a, b) in enumerate(zip(input.axes, t.axes, strict=True)) if i != d]
    return Flow((*input.axes[:d], frozen(result.shape[d], _WHY), *input.axes[d + 1 :]), same, reasons)


@rule("trapezoid", "trapz", "cumulative_trapezoid")
def trapezoid_axes(y: Typed, x: Typed | None = None, *, dx: object = 1, dim: int = -1, result: Typed) -> Flow:
    """... n, n -> ..., n frozen"""
    if x is not None and x.ndim > 1:
        raise NotCovered("only one set of places for all is understood")
    d = at(dim, y.ndim)
    reasons = [(y.axes[d], _WHY)] + ([] if x is None else [(x.axes[0], _WHY)])
    kept = [frozen(result.shape[d], _WHY)] if result.ndim == y.ndim else []
    return Flow((*y.axes[:d], *kept, *y.axes[d + 1 :]), frozen=reasons)


@rule("count_nonzero")
def count_nonzero_axes(input: Typed, dim: Dims = None) -> Flow:
    """... n -> ... (a removed element counts as zero)"""
    return Flow(without(input, dim, False), reduced=[input.axes[d] for d in dims_of(dim, input.ndim)])


@rule("renorm")
def renorm_axes(input: Typed, p: float, dim: int, maxnorm: float) -> Flow:
    """n ... -> n ..., each slice along `dim` scaled down to a norm (zeros add nothing to it)"""
    d = at(dim, input.ndim)
    return Flow(input.axes, reduced=[axis for i, axis in enumerate(input.axes) if i != d])


@rule("bucketize")
def bucketize_axes(input: Typed, boundaries: Typed, **options: object) -> Flow:
    """..., n -> ..., n frozen"""
    return Flow(input.axes, frozen=[(boundaries.axes[0], _WHY)])


@rule("searchsorted")
def searchsorted_axes(sorted_sequence: Typed, input: object, **options: object) -> Flow:
    """... n, ... m -> ... m, n frozen (or n, any shape)"""
    *lead, n = sorted_sequence.axes
    axes = input.axes if isinstance(input, Typed) else ()
    same: list[tuple[Axis, Axis]] = list(zip(lead, axes[:-1], strict=True)) if lead else []
    return Flow(axes, same, frozen=[(n, _WHY)])


@rule("isin")
def isin_axes(elements: Typed, test_elements: object, **options: object) -> Flow:
    """..., n -> ..., n frozen"""
    tested = test_elements.axes if isinstance(test_elements, Typed) else ()
    return Flow(elements.axes, frozen=[(axis, "compared with each element") for axis in tested])


def _frozen_axes(why: str) -> Callable[..., Flow]:
    def all_frozen_axes(*args: object, result: Result, **options: object) -> Flow:
        """... -> ..., all frozen"""
        reasons = [(axis, why) for t in leaves([args, options], Typed) for axis in t.axes]
        return Flow(_shapes(result), frozen=reasons)

    return all_frozen_axes


def _shapes(result: Result) -> Out:
    return result.axes if isinstance(result, Typed) else [_shapes(r) for r in result]


_FROZEN = {
    "what is returned depends on its values": "histc bincount multinomial nonzero argwhere masked_select "
    "unique unique_consecutive _unique2 unique_dim",
    "its elements are not alike": "combinations as_strided take put",
    "a loss is taken over it": "cosine_embedding_loss triplet_margin_loss ctc_loss margin_ranking_loss "
    "multi_margin_loss multilabel_margin_loss multilabel_soft_margin_loss",
}
for _why, _ops in _FROZEN.items():
    for _op in _ops.split():
        DEFAULT_RULES.add(_op, _frozen_axes(_why))
