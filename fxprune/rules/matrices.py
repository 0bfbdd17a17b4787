"""Matrix functions: a matrix is one thing and is frozen, a batch of them passes."""

from __future__ import annotations

from fxprune.graph.nests import leaves
from fxprune.rules.axes import frozen
from fxprune.rules.elementwise import broadcast
from fxprune.rules.registry import Axes, Flow, Out, Result, Typed, at, rule

_WHY = "a function of the whole matrix"


@rule(
    *("det", "linalg_det", "logdet", "slogdet", "linalg_slogdet", "svd", "linalg_svd"),
    *("linalg_svdvals", "linalg_qr", "linalg_eig", "linalg_eigh", "linalg_eigvals", "linalg_eigvalsh"),
    *("matrix_exp", "linalg_matrix_exp", "matrix_power", "linalg_matrix_power", "linalg_matrix_rank"),
    *("linalg_cond", "linalg_pinv", "pinverse", "nuclear_norm", "linalg_matrix_norm", "linalg_lu"),
    *("linalg_inv_ex", "linalg_cholesky_ex"),
)
def matrix_axes(input: Typed, *options: object, result: Result, **more: object) -> Flow:
    """... n m -> ... , n and m frozen"""
    others = [t for t in leaves([options, more], Typed) if t.ndim]
    batch = input.axes[:-2]
    reasons = [(axis, _WHY) for t in (input, *others) for axis in (t.axes if t is not input else t.axes[-2:])]
    return Flow(_shaped(result, batch), frozen=reasons)


def _shaped(result: Result, batch: Axes) -> Out:
    """Return a result's axes: the batch's, then frozen ones; its own where it is one number for the batch."""
    if not isinstance(result, Typed):
        return [_shaped(r, batch) for r in result]
    if result.shape[: len(batch)] != Typed(batch).shape:
        return result.axes
    return (*batch, *(frozen(size, _WHY) for size in result.shape[len(batch) :]))


@rule(
    *("inverse", "linalg_inv", "linalg_cholesky", "cholesky_inverse", "linalg_lu_factor"),
    *("linalg_solve", "linalg_lstsq", "linalg_solve_triangular", "cholesky_solve", "triangular_solve"),
)
def inverse_axes(*args: object, result: Result, **options: object) -> Flow:
    """n n -> n n, all frozen: a matrix of zeros, which stands for a removed one, has no inverse"""
    reasons = [(axis, "it has no value for zeros") for t in leaves([args, options], Typed) for axis in t.axes]
    return Flow(_shaped(result, ()), frozen=reasons)


@rule("cross")
def cross_axes(input: Typed, other: Typed, dim: int | None = None) -> Flow:
    """... 3, ... 3 -> ... 3, the three frozen; by default the first of that size"""
    out, same = broadcast([input.axes, other.axes])
    d = next(d for d, axis in enumerate(out) if axis.size == 3) if dim is None else at(dim, len(out))
    return Flow(out, same, frozen=[(axis, "a product of vectors mixes it") for axis in out[: d + 1]])


@rule("linalg_cross")
def linalg_cross_axes(input: Typed, other: Typed, dim: int = -1) -> Flow:
    """... 3, ... 3 -> ... 3, the three frozen"""
    out, same = broadcast([input.axes, other.axes])
    return Flow(out, same, frozen=[(out[at(dim, len(out))], "a product of vectors mixes it")])
