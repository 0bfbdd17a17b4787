"""NumPy's ways to join tensors along one dimension or another, and to give them that dimension first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from fxprune.rules.axes import ONE, Axis, Product, Sum, atom, frozen
from fxprune.rules.joining import cat_axes, replaced, roll_axes
from fxprune.rules.registry import DEFAULT_RULES, Axes, Flow, NotCovered, Typed, rule, several


def _at_least(axes: Axes, ndim: int) -> Axes:
    """Add dimensions as `atleast_2d` and `atleast_3d` do: n as 1 n and as 1 n 1; m n as m n 1."""
    if len(axes) >= ndim:
        return axes
    if ndim == 3 and len(axes) == 2:
        return (*axes, ONE)
    padded: dict[int, Axes] = {1: (ONE,), 2: (ONE, *(axes or (ONE,))), 3: (ONE, *(axes or (ONE,)), ONE)}
    return padded[ndim]


def _atleast(ndim: int) -> Callable[..., Flow]:
    def atleast_axes(*tensors: Typed | Sequence[Typed]) -> Flow:
        """n -> 1 n"""
        given = several(tensors)
        out = [_at_least(t.axes, ndim) for t in given]
        return Flow(out[0] if len(tensors) == 1 and given is tensors else out)

    return atleast_axes


for _n in (1, 2, 3):
    DEFAULT_RULES.add(f"atleast_{_n}d", _atleast(_n))


def _cat(tensors: Sequence[Axes], dim: int) -> Flow:
    return cat_axes([Typed(axes) for axes in tensors], dim)


@rule("hstack")
def hstack_axes(tensors: Sequence[Typed]) -> Flow:
    """b n, b m -> b [n | m]; n, m -> [n | m]"""
    shapes = [_at_least(t.axes, 1) for t in tensors]
    return _cat(shapes, 0 if len(shapes[0]) == 1 else 1)


@rule("vstack", "row_stack")
def vstack_axes(tensors: Sequence[Typed]) -> Flow:
    """n c, m c -> [n | m] c; c, c -> 2 c"""
    return _counted(_cat([_at_least(t.axes, 2) for t in tensors], 0), 0)


@rule("dstack")
def dstack_axes(tensors: Sequence[Typed]) -> Flow:
    """a b n, a b m -> a b [n | m]; a b, a b -> a b 2"""
    return _counted(_cat([_at_least(t.axes, 3) for t in tensors], 2), 2)


@rule("column_stack")
def column_stack_axes(tensors: Sequence[Typed]) -> Flow:
    """b n, b m -> b [n | m]; b, b -> b 2"""
    return _counted(_cat([(*(t.axes or (ONE,)), ONE) if t.ndim < 2 else t.axes for t in tensors], 1), 1)


def _counted(flow: Flow, dim: int) -> Flow:
    """Freeze an axis that is joined of single elements: it counts what is stacked."""
    joined = flow.axes[dim]
    if isinstance(joined, Sum) and all(part == ONE for part in joined.parts):
        counted = frozen(joined.size, "it counts what is stacked")
        return replace(flow, out=replaced(flow.axes, dim, counted))
    return flow


def _equal_split(dim: int) -> Callable[..., Flow]:
    def split_axes(input: Typed, indices_or_sections: int | Sequence[int]) -> Flow:
        """... [n | n] -> ... n, ... n"""
        if not isinstance(indices_or_sections, int):
            raise NotCovered("only equal parts are understood: use tensor_split")
        d = 0 if input.ndim == 1 else dim
        piece: Axis = atom(input.shape[d] // indices_or_sections)
        pieces = [piece] * indices_or_sections
        return Flow([replaced(input.axes, d, p) for p in pieces], same=[(input.axes[d], Sum.of(pieces))])

    return split_axes


for _name, _dim in {"hsplit": 1, "vsplit": 0, "dsplit": 2}.items():
    DEFAULT_RULES.add(_name, _equal_split(_dim))


@rule("block_diag")
def block_diag_axes(*tensors: Typed | Sequence[Typed]) -> Flow:
    """a b, c d -> [a | c] [b | d]"""
    blocks = [_at_least(t.axes, 2) for t in several(tensors)]
    return Flow((Sum.of(b[0] for b in blocks), Sum.of(b[1] for b in blocks)))


@rule("cartesian_prod")
def cartesian_prod_axes(*tensors: Typed | Sequence[Typed]) -> Flow:
    """n, m -> (n m) 2"""
    given = several(tensors)
    if len(given) == 1:
        return Flow(given[0].axes)
    rows = Product.of(t.axes[0] for t in given)
    return Flow((rows, frozen(len(given), "it counts what is combined")))


@rule("fliplr")
def fliplr_axes(input: Typed) -> Flow:
    """a n ... -> a n ..., n frozen"""
    return roll_axes(input, None, 1)


@rule("flipud")
def flipud_axes(input: Typed) -> Flow:
    """n ... -> n ..., n frozen"""
    return roll_axes(input, None, 0)


@rule("rot90")
def rot90_axes(input: Typed, k: int = 1, dims: Sequence[int] = (0, 1)) -> Flow:
    """a b -> b a, both frozen"""
    flow = roll_axes(input, None, list(dims))
    if k % 2:
        axes = list(input.axes)
        axes[dims[0]], axes[dims[1]] = axes[dims[1]], axes[dims[0]]
        return replace(flow, out=tuple(axes))
    return flow
