"""Ops that regroup dimensions without touching an element: reshape, permute, expand and their kin."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

from fxprune.rules.axes import ONE, Axis, Product, atom, frozen, refine
from fxprune.rules.elementwise import broadcast
from fxprune.rules.laws import LAYOUT
from fxprune.rules.registry import Axes, Dims, Flow, NotCovered, Typed, at, dims_of, rule, several


def factors(axes: Iterable[Axis]) -> list[Axis]:
    """Return the dimensions of a tensor as one row-major list of factors, units left out."""
    product = Product.of(axes)
    return list(product.parts) if isinstance(product, Product) else [product]


def regroup(axes: Axes, sizes: Sequence[int]) -> Flow:
    """Match row-major factors with sizes: split, merge, or freeze what doesn't align.

    (b 14 14 c) as b 196 c merges; b 196 (3 h d) as b 196 3 h d splits; where neither is possible
    (14 rows as 2 x 7 in, 7 x 2 out) only the run of factors that does not line up is frozen.
    """
    left = factors(axes)
    right = [size for size in sizes if size != 1]
    if [f.size for f in left] == right:  # only units come and go
        kept = iter(left)
        return Flow(tuple(ONE if size == 1 else next(kept) for size in sizes))
    if 0 in right:
        return Flow(tuple(frozen(s, "empty") for s in sizes), frozen=[(a, "emptied") for a in axes])
    out: list[Axis] = []
    same: list[tuple[Axis, Axis]] = []
    reasons: list[tuple[Axis, str]] = []
    for seg in refine([f.size for f in left], right):
        if seg.left_pieces is None or seg.right_pieces is None:
            reasons += [(left[i], "a reshape cuts across it") for i in seg.left]
            out += [frozen(right[j], "a reshape cuts across it") for j in seg.right]
            continue
        pieces: list[Axis] = []
        for i, split in zip(seg.left, seg.left_pieces, strict=True):
            fresh = [left[i]] if len(split) == 1 else [atom(size) for size in split]
            if len(split) > 1:
                same.append((left[i], Product.of(fresh)))
            pieces += fresh
        for merged in seg.right_pieces:
            out.append(Product.of(pieces[: len(merged)]))
            pieces = pieces[len(merged) :]
    dims = iter(out)
    return Flow(tuple(ONE if size == 1 else next(dims) for size in sizes), same, reasons)


@rule("reshape", "view", "_unsafe_view", linear=LAYOUT)
def reshape_axes(input: Typed, shape: Sequence[int]) -> Flow:
    """(a b) (c d) -> (a b c) d"""
    if not isinstance(shape, (list, tuple)):  # x.view(dtype)
        return Flow(input.axes, frozen=[(axis, "reinterpreted") for axis in input.axes])
    known = math.prod(s for s in shape if s != -1)
    total = math.prod(input.shape)
    flow = regroup(input.axes, [total // known if s == -1 else s for s in shape])
    return replace(flow, sizes={"shape": flow.axes})


@rule("reshape_as", "view_as", linear=LAYOUT)
def reshape_as_axes(input: Typed, other: Typed) -> Flow:
    """a (b c), a b c -> a b c"""
    flow = regroup(input.axes, other.shape)
    return replace(flow, same=[*flow.same, *zip(flow.axes, other.axes, strict=True)])


@rule("flatten", "ravel", linear=LAYOUT)
def flatten_axes(input: Typed, start_dim: int = 0, end_dim: int = -1) -> Flow:
    """a b c d -> a (b c) d"""
    i, j = at(start_dim, input.ndim), at(end_dim, input.ndim)
    return Flow((*input.axes[:i], Product.of(input.axes[i : j + 1]), *input.axes[j + 1 :]))


@rule("unflatten", linear=LAYOUT)
def unflatten_axes(input: Typed, dim: int, sizes: Sequence[int]) -> Flow:
    """a (b c) d -> a b c d"""
    d = at(dim, input.ndim)
    known = math.prod(s for s in sizes if s != -1)
    full = [input.shape[d] // known if s == -1 else s for s in sizes]
    flow = regroup((input.axes[d],), full)
    out = (*input.axes[:d], *flow.axes, *input.axes[d + 1 :])
    return replace(flow, out=out, sizes={"sizes": flow.axes})


@rule("permute", linear=LAYOUT)
def permute_axes(input: Typed, dims: Sequence[int]) -> Flow:
    """a b c -> c a b"""
    return Flow(tuple(input.axes[d] for d in dims_of(list(dims), input.ndim)))


@rule("transpose", "swapaxes", "swapdims", linear=LAYOUT)
def transpose_axes(input: Typed, dim0: int, dim1: int) -> Flow:
    """a b c -> a c b"""
    axes = list(input.axes)
    axes[dim0], axes[dim1] = axes[dim1], axes[dim0]
    return Flow(tuple(axes))


@rule("t", "adjoint", "mT", "mH", linear=LAYOUT)
def t_axes(input: Typed) -> Flow:
    """... a b -> ... b a"""
    return Flow((*input.axes[:-2], *reversed(input.axes[-2:])))


@rule("numpy_T", linear=LAYOUT)
def numpy_t_axes(input: Typed) -> Flow:
    """a b c -> c b a"""
    return Flow(tuple(reversed(input.axes)))


@rule("getattr", linear=LAYOUT)
def getattr_axes(input: Typed, name: str) -> Flow:
    """a b -> b a, of attributes that are tensors themselves: x.T, x.mT, x.data"""
    if name in ("T", "H"):
        return numpy_t_axes(input)
    if name in ("mT", "mH"):
        return t_axes(input)
    if name in ("data", "real", "imag"):
        return Flow(input.axes)
    raise NotCovered(f"the attribute {name!r} is not understood")


@rule("movedim", "moveaxis", linear=LAYOUT)
def movedim_axes(input: Typed, source: Dims, destination: Dims) -> Flow:
    """a b c -> b c a"""
    sources, targets = dims_of(source, input.ndim), dims_of(destination, input.ndim)
    order = [d for d in range(input.ndim) if d not in sources]
    for target, origin in sorted(zip(targets, sources, strict=True)):
        order.insert(target, origin)
    return Flow(tuple(input.axes[d] for d in order))


@rule("view_as_complex")
def view_as_complex_axes(input: Typed) -> Flow:
    """... 2 -> ..."""
    return Flow(input.axes[:-1], frozen=[(input.axes[-1], "real and imaginary parts")])


@rule("view_as_real")
def view_as_real_axes(input: Typed) -> Flow:
    """... -> ... 2"""
    return Flow((*input.axes, frozen(2, "real and imaginary parts")))


@rule("unsqueeze", linear=LAYOUT)
def unsqueeze_axes(input: Typed, dim: int) -> Flow:
    """a b -> a 1 b"""
    d = at(dim, input.ndim + 1)
    return Flow((*input.axes[:d], ONE, *input.axes[d:]))


@rule("squeeze", linear=LAYOUT)
def squeeze_axes(input: Typed, dim: Dims = None) -> Flow:
    """a 1 b -> a b"""
    gone = dims_of(dim, input.ndim)
    return Flow(tuple(a for i, a in enumerate(input.axes) if i not in gone or a != ONE))


@rule("expand", "broadcast_to", linear=LAYOUT)
def expand_axes(input: Typed, size: Sequence[int], *, implicit: bool = False) -> Flow:
    """1 n -> b n, b free: as many copies as what they meet has elements"""
    new = len(size) - input.ndim
    padded = (*(ONE for _ in range(new)), *input.axes)
    out = tuple(axis if s == -1 or axis.size == s else atom(s) for axis, s in zip(padded, size, strict=True))
    return Flow(out, sizes={"size": out})


@rule("expand_as", linear=LAYOUT)
def expand_as_axes(input: Typed, other: Typed) -> Flow:
    """1 n, b n -> b n"""
    padded = (*(ONE for _ in range(other.ndim - input.ndim)), *input.axes)
    same = [(a, b) for a, b in zip(padded, other.axes, strict=True) if a != ONE]
    return Flow(other.axes, same)


@rule("broadcast_tensors")
def broadcast_tensors_axes(*tensors: Typed | Sequence[Typed]) -> Flow:
    """b n, n -> b n, b n"""
    given = several(tensors)
    out, same = broadcast(t.axes for t in given)
    return Flow([out for _ in given], same)


@rule("repeat", "tile", linear=LAYOUT)
def repeat_axes(input: Typed, repeats: Sequence[int]) -> Flow:
    """a b 1 -> (2 a) (3 b) c, c free: a repeat of one element is an expand"""
    given = len(repeats)
    repeats = [1] * (input.ndim - given) + list(repeats)  # tile may name fewer dimensions
    padded = (*(ONE for _ in range(len(repeats) - input.ndim)), *input.axes)
    pairs = list(zip(repeats, padded, strict=True))
    out = tuple(atom(n) if axis == ONE else Product.of((frozen(n, "copies"), axis)) for n, axis in pairs)
    spelled = [a if axis == ONE else None for a, axis in zip(out, padded, strict=True)]
    return Flow(out, sizes={"repeats": spelled[-given:]})


@rule("repeat_interleave", linear=LAYOUT)
def repeat_interleave_axes(
    input: Typed, repeats: object, dim: int | None = None, *, output_size: object = None
) -> Flow:
    """a b -> a (b 3)"""
    if dim is None or not isinstance(repeats, int):
        raise NotCovered("only a whole number of copies along one dimension is understood")
    d = at(dim, input.ndim)
    copied = Product.of((input.axes[d], frozen(repeats, "copies")))
    return Flow((*input.axes[:d], copied, *input.axes[d + 1 :]), sizes={"output_size": copied})


@rule("meshgrid")
def meshgrid_axes(*tensors: Typed | Sequence[Typed], indexing: str = "ij") -> Flow:
    """n, m -> n m, n m"""
    vectors = several(tensors)
    grid = tuple(axis for v in vectors for axis in (v.axes or (ONE,)))
    if indexing == "xy":
        grid = (*reversed(grid[:2]), *grid[2:])
    return Flow([grid for _ in vectors])
