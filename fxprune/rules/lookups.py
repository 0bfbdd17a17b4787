"""Elements picked or written by place: the places are frozen, what lies beside them passes."""

from __future__ import annotations

from dataclasses import replace

from fxprune.rules.axes import ONE, Axis, frozen
from fxprune.rules.elementwise import broadcast
from fxprune.rules.joining import replaced
from fxprune.rules.registry import Flow, Typed, at, dims_of, rule

_LOOKED_UP = "looked up by index"
_DIAGONAL = "a diagonal runs across it"


@rule("take_along_dim")
def take_along_dim_axes(input: Typed, indices: Typed, dim: int | None = None) -> Flow:
    """b n c, b m 1 -> b m c, n frozen"""
    if dim is None:
        return Flow(indices.axes, frozen=[(axis, _LOOKED_UP) for axis in input.axes])
    d = at(dim, input.ndim)
    beside, same = broadcast([replaced(input.axes, d, ONE), replaced(indices.axes, d, ONE)])
    return Flow(replaced(beside, d, indices.axes[d]), same, frozen=[(input.axes[d], _LOOKED_UP)])


@rule("masked_scatter")
def masked_scatter_axes(input: Typed, mask: Typed, source: Typed) -> Flow:
    """b n c, b n 1, m c -> b n c, all frozen but c: rows of the source go where the mask says"""
    rows = 0  # how many trailing dimensions the mask says nothing of
    padded = [ONE] * (input.ndim - mask.ndim) + list(mask.axes)
    while rows < min(input.ndim - 1, source.ndim) and padded[-1 - rows] == ONE:
        rows += 1
    while rows and source.shape[-rows:] != input.shape[-rows:]:
        rows -= 1
    free = list(zip(input.axes[input.ndim - rows :], source.axes[source.ndim - rows :], strict=True))
    _, fits = broadcast([input.axes, mask.axes])
    written: list[Axis] = [*input.axes[: input.ndim - rows], *source.axes[: source.ndim - rows]]
    return Flow(input.axes, [*fits, *free], frozen=[(axis, "filled in order") for axis in written])


@rule("index_reduce")
def index_reduce_axes(
    input: Typed, dim: int, index: Typed, source: Typed, reduce: str, *, include_self: bool = True
) -> Flow:
    """b v c, n, b n c -> b v c, v and n frozen"""
    d = at(dim, input.ndim)
    same = [pair for i, pair in enumerate(zip(input.axes, source.axes, strict=True)) if i != d]
    reasons = [(axis, _LOOKED_UP) for axis in (input.axes[d], source.axes[d], *index.axes)]
    return Flow(input.axes, same, reasons)


@rule("diagonal")
def diagonal_axes(input: Typed, offset: int = 0, dim1: int = 0, dim2: int = 1, *, result: Typed) -> Flow:
    """a n n -> a n, n frozen"""
    dims = dims_of([dim1, dim2], input.ndim)
    rest = tuple(axis for i, axis in enumerate(input.axes) if i not in dims)
    reasons = [(input.axes[d], _DIAGONAL) for d in dims]
    return Flow((*rest, frozen(result.shape[-1], _DIAGONAL)), frozen=reasons)


@rule("linalg_diagonal")
def matrix_diagonal_axes(A: Typed, *, offset: int = 0, dim1: int = -2, dim2: int = -1, result: Typed) -> Flow:
    """a n n -> a n, n frozen"""
    return diagonal_axes(A, offset, dim1, dim2, result=result)


@rule("diagonal_scatter")
def diagonal_scatter_axes(input: Typed, src: Typed, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Flow:
    """a n n, a n -> a n n, n frozen"""
    flow = diagonal_axes(input, offset, dim1, dim2, result=src)
    return replace(flow, out=input.axes, same=list(zip(flow.axes, src.axes, strict=True)))


@rule("diag_embed")
def diag_embed_axes(input: Typed, offset: int = 0, dim1: int = -2, dim2: int = -1, *, result: Typed) -> Flow:
    """a n -> a n n, n frozen"""
    dims = dims_of([dim1, dim2], result.ndim)
    rest = iter(input.axes[:-1])
    out = [frozen(size, _DIAGONAL) if d in dims else next(rest) for d, size in enumerate(result.shape)]
    return Flow(tuple(out), frozen=[(input.axes[-1], _DIAGONAL)])


@rule("diag", "diagflat")
def diag_axes(input: Typed, diagonal: int = 0, *, result: Typed, **offset: object) -> Flow:
    """n -> n n; n n -> n; n frozen"""
    out = tuple(frozen(size, _DIAGONAL) for size in result.shape)
    return Flow(out, frozen=[(axis, _DIAGONAL) for axis in input.axes])


@rule("trace")
def trace_axes(input: Typed) -> Flow:
    """n n -> , n frozen"""
    return Flow((), frozen=[(axis, _DIAGONAL) for axis in input.axes])
