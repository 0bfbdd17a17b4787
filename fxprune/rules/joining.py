"""Ops that join tensors along a dimension or take pieces of one: sums of axes.

One file, since joining and taking apart undo each other.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

from fxprune.graph.nests import leaves
from fxprune.graph.own_nodes import split_by_sizes
from fxprune.rules.axes import ONE, Axis, Product, Reason, Sum, atom, frozen
from fxprune.rules.elementwise import broadcast
from fxprune.rules.laws import LAYOUT
from fxprune.rules.registry import Axes, Bound, Dims, Flow, NotCovered, Pairs, Typed, at, dims_of, rule


def replaced(axes: Axes, dim: int, *new: Axis) -> Axes:
    """Return the axes with one dimension replaced (by none: removed)."""
    return (*axes[:dim], *new, *axes[dim + 1 :])


def unify_all(tensors: Sequence[Axes]) -> list[tuple[Axis, Axis]]:
    """Couple several tensors' axes, dimension by dimension."""
    return [pair for other in tensors[1:] for pair in zip(tensors[0], other, strict=True)]


@rule("cat", "concat", "concatenate", linear=LAYOUT)
def cat_axes(tensors: Sequence[Typed], dim: int = 0) -> Flow:
    """... n, ... m -> ... [n | m]"""
    filled = [t for t in tensors if t.shape != (0,)]
    d = at(dim, filled[0].ndim)
    joined = Sum.of(t.axes[d] for t in filled)
    same = unify_all([replaced(t.axes, d) for t in filled])
    return Flow(replaced(filled[0].axes, d, joined), same)


@rule("stack", linear=LAYOUT)
def stack_axes(tensors: Sequence[Typed], dim: int = 0) -> Flow:
    """n, n -> 2 n"""
    axes = tensors[0].axes
    d = at(dim, len(axes) + 1)
    out = (*axes[:d], frozen(len(tensors), "it counts what is stacked"), *axes[d:])
    return Flow(out, same=unify_all([t.axes for t in tensors]))


def pieces_of(axis: Axis, sizes: Sequence[int]) -> list[Axis]:
    """Cut an axis into consecutive parts, its own where they end there already."""
    if isinstance(axis, Sum) and [p.size for p in axis.parts] == list(sizes):
        return list(axis.parts)
    return [atom(size) for size in sizes]


def split_flow(input: Typed, sizes: Sequence[int], dim: int, argument: str) -> Flow:
    """... [n | m] -> ... n, ... m"""
    d = at(dim, input.ndim)
    return _split_into(input, pieces_of(input.axes[d], sizes), d, argument)


def _split_into(input: Typed, pieces: Sequence[Axis], d: int, argument: str) -> Flow:
    return Flow(
        [replaced(input.axes, d, piece) for piece in pieces],
        same=[(input.axes[d], Sum.of(pieces))],
        sizes={argument: pieces},
        replacement=split_by_sizes,
    )


@rule("split", "split_with_sizes", "unsafe_split", linear=LAYOUT)
def split_axes(input: Typed, split_size: int | Sequence[int], dim: int = 0) -> Flow:
    """... [n | n | m] -> ... n, ... n, ... m"""
    n = input.shape[at(dim, input.ndim)]
    sizes = split_size if not isinstance(split_size, int) else _equal_parts(n, split_size)
    return split_flow(input, sizes, dim, "split_size")


@rule("chunk", "unsafe_chunk", linear=LAYOUT)
def chunk_axes(input: Typed, chunks: int, dim: int = 0) -> Flow:
    """... [n | n] -> ... n, ... n"""
    n = input.shape[at(dim, input.ndim)]
    return split_flow(input, _equal_parts(n, -(-n // chunks)), dim, "chunks")


@rule("tensor_split", linear=LAYOUT)
def tensor_split_axes(input: Typed, indices_or_sections: int | Sequence[int], dim: int = 0) -> Flow:
    """... [n | m] -> ... n, ... m"""
    n = input.shape[at(dim, input.ndim)]
    if isinstance(indices_or_sections, int):
        k = indices_or_sections
        sizes = [n // k + (i < n % k) for i in range(k)]
    else:
        if any(not 0 <= i <= n for i in indices_or_sections):
            raise NotCovered("places that count from the end, or lie beyond it, are not understood")
        ends = [0, *indices_or_sections, n]
        sizes = [b - a for a, b in itertools.pairwise(ends)]
    d = at(dim, input.ndim)
    pieces = pieces_of(input.axes[d], sizes)
    flow = _split_into(input, pieces, d, "indices_or_sections")
    if isinstance(indices_or_sections, int):
        return flow
    cuts = [Bound(Sum.of(pieces[:i])) for i in range(1, len(pieces))]  # given are these, not the sizes
    return replace(flow, sizes={"indices_or_sections": cuts})


def _equal_parts(n: int, size: int) -> list[int]:
    return [min(size, n - start) for start in range(0, n, size)]


@rule("unbind", linear=LAYOUT)
def unbind_axes(input: Typed, dim: int = 0) -> Flow:
    """3 n -> n, n, n; the axis that is taken apart is frozen"""
    d = at(dim, input.ndim)
    taken = input.axes[d]
    out = replaced(input.axes, d)
    return Flow([out] * taken.size, frozen=[(taken, "taken apart element by element")])


@rule("select", linear=LAYOUT)
def select_axes(input: Typed, dim: int, index: int) -> Flow:
    """3 n -> n"""
    d = at(dim, input.ndim)
    return Flow(replaced(input.axes, d), frozen=[(_part_with(input.axes[d], index), "selected by index")])


def _part_with(axis: Axis, index: object) -> Axis:
    """Return the parts of a concatenation that an index counts over; others need not be frozen for it."""
    if not isinstance(axis, Sum) or not isinstance(index, int):
        return axis
    start, place = 0, at(index, axis.size)
    for i, part in enumerate(axis.parts):
        start += part.size
        if place < start:
            return Sum.of(axis.parts[: i + 1] if index >= 0 else axis.parts[i:])
    raise NotCovered(f"index {index} is beyond {axis.size} elements")


def sliced(axis: Axis, start: int | None, stop: int | None, step: int | None) -> tuple[Axis, Flow, slice]:
    """Slice one axis, x[start:stop:step]: the result, what follows, and the axes its bounds spell."""
    begin, end, stride = slice(start, stop, step).indices(axis.size)
    size = len(range(begin, end, stride))
    if size == axis.size and stride == 1:
        return axis, Flow(()), slice(None)
    if stride == 1 and size > 0:
        before, piece, after = pieces_of_three(axis, begin, size)
        whole = Sum.of((before, piece, after))
        rest = Sum.of((piece, after))
        begins = None if not start else Bound(rest if start < 0 else before)
        ends = None if stop is None else Bound(after if stop < 0 else Sum.of((before, piece)))
        spelled = slice(begins, ends)
        return piece, Flow((), same=[(axis, whole)]), spelled
    even = axis.size % stride == 0 and begin < stride and size == axis.size // stride
    if stride > 1 and even and (start is None or start >= 0):
        piece = atom(size)  # every stride-th element: n = (piece stride)
        why = "taken apart by a strided slice"
        same = [(axis, Product.of((piece, frozen(stride, why))))]
        return piece, Flow((), same=same), slice(None)
    out = frozen(size, "a slice of it")
    return out, Flow((), frozen=[(axis, "sliced at odd bounds")]), slice(None)


def pieces_of_three(axis: Axis, begin: int, size: int) -> tuple[Axis, Axis, Axis]:
    """Return an axis cut before and after a run of elements, along its own parts where they end there."""
    if isinstance(axis, Sum):
        ends = [0, *itertools.accumulate(part.size for part in axis.parts)]
        if begin in ends and begin + size in ends:
            i, j = ends.index(begin), ends.index(begin + size)
            return Sum.of(axis.parts[:i]), Sum.of(axis.parts[i:j]), Sum.of(axis.parts[j:])
    return atom(begin), atom(size), atom(axis.size - begin - size)


@rule("slice", linear=LAYOUT)
def slice_axes(
    input: Typed, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Flow:
    """... [a | n | b] -> ... n"""
    d = at(dim, input.ndim)
    piece, flow, spelled = sliced(input.axes[d], start, end, step)
    sizes = {"start": spelled.start, "end": spelled.stop}
    return replace(flow, out=replaced(input.axes, d, piece), sizes=sizes)


@rule("slice_scatter", linear=LAYOUT)
def slice_scatter_axes(
    input: Typed,
    src: Typed,
    dim: int = 0,
    start: int | None = None,
    end: int | None = None,
    step: int = 1,
) -> Flow:
    """... [a | n | b], ... n -> ... [a | n | b]"""
    return _written_back(slice_axes(input, dim, start, end, step), input, src)


@rule("select_scatter", linear=LAYOUT)
def select_scatter_axes(input: Typed, src: Typed, dim: int, index: int) -> Flow:
    """3 n, n -> 3 n"""
    return _written_back(select_axes(input, dim, index), input, src)


def _written_back(part: Flow, input: Typed, src: Typed) -> Flow:
    """Write a tensor to the part of another that an op takes: the result has the other's axes."""
    return replace(part, out=input.axes, same=[*part.same, *zip(part.axes, src.axes, strict=True)])


@rule("narrow", linear=LAYOUT)
def narrow_axes(input: Typed, dim: int, start: int, length: int) -> Flow:
    """... [a | n | b] -> ... n"""
    d = at(dim, input.ndim)
    stop = None if start < 0 and start + length == 0 else start + length  # a[-2:] counts from the end
    piece, flow, spelled = sliced(input.axes[d], start, stop, 1)
    sizes = {"start": spelled.start, "length": piece}
    return replace(flow, out=replaced(input.axes, d, piece), sizes=sizes)


@rule("getitem", linear=LAYOUT)
def getitem_axes(input: object, index: object) -> Flow:
    """n m l, k -> m b 1 k: each element of the index `i, :, a:b, None, table` acts on its own dimension"""
    if not isinstance(input, Typed):
        raise NotCovered("a container is indexed, not a tensor")
    entries = list(index) if isinstance(index, tuple) else [index]
    used = sum(_dims_used(e) for e in entries)
    if not any(e is Ellipsis for e in entries):
        entries.append(Ellipsis)
    out: list[Axis] = []
    same: list[tuple[Axis, Axis]] = []
    reasons: list[tuple[Axis, str | Reason]] = []
    spelled: list[slice | None] = []
    advanced: list[tuple[int, Typed]] = []  # where in `out` an index tensor stands
    dim = 0
    for entry in entries:
        if entry is None:
            out.append(ONE)
        elif entry is Ellipsis:
            out += input.axes[dim : dim + input.ndim - used]
            dim += input.ndim - used
        elif isinstance(entry, slice):
            piece, part, bounds = sliced(input.axes[dim], entry.start, entry.stop, entry.step)
            same += part.same
            reasons += part.frozen
            out.append(piece)
            spelled.append(bounds)
            dim += 1
            continue
        elif isinstance(entry, int):
            reasons.append((_part_with(input.axes[dim], entry), "selected by index"))
            dim += 1
        else:
            advanced.append((len(out), _index_tensor(entry)))
            reasons.append((input.axes[dim], "looked up by index"))
            dim += 1
        spelled.append(None)
    axes, coupled = _with_index_axes(out, advanced)
    sizes = {"index": tuple(spelled[: len(index)]) if isinstance(index, tuple) else spelled[0]}
    return Flow(axes, [*same, *coupled], reasons, sizes)


def _index_tensor(entry: object) -> Typed:
    """Type an element of an index that picks several: a tensor, or a list of numbers."""
    if isinstance(entry, (list, tuple, range)):
        return Typed((frozen(len(entry), "an index"),))
    if not isinstance(entry, Typed):
        raise NotCovered(f"an index of {type(entry).__name__} is not understood")
    return entry


@rule("written")
def written_axes(x: Typed, index: object, value: object) -> Flow:
    """... n, m -> ... n, as `x[index] = value`: what is written has the axes of the part written to"""
    part = getitem_axes(x, index)
    _, fits = broadcast([part.axes, *(t.axes for t in leaves(value, Typed))])
    reasons = [*part.frozen, *_places(index)]
    return Flow(x.axes, same=[*part.same, *fits], frozen=reasons, sizes=part.sizes)


def _places(index: object) -> list[tuple[Axis, str]]:
    """Freeze the axes of index tensors: what is not written to all of them keeps other values there."""
    return [(axis, "written to") for tensor in leaves(index, Typed) for axis in tensor.axes]


def _dims_used(entry: object) -> int:
    return 0 if entry is None or entry is Ellipsis else 1


def _with_index_axes(out: list[Axis], advanced: list[tuple[int, Typed]]) -> tuple[Axes, Pairs]:
    """Broadcast index tensors together; the result stands where they stood side by side, else first."""
    if not advanced:
        return tuple(out), []
    axes, same = broadcast([t.axes for _, t in advanced])
    places = [place for place, _ in advanced]
    where = places[0] if places[0] == places[-1] else 0
    return (*out[:where], *axes, *out[where:]), same


@rule("aten.index", "_unsafe_index", linear=LAYOUT)
def index_axes(input: Typed, indices: Sequence[Typed | None]) -> Flow:
    """v c, n m -> n m c"""
    return replace(getitem_axes(input, tuple(slice(None) if i is None else i for i in indices)), sizes={})


@rule("index_select", linear=LAYOUT)
def index_select_axes(input: Typed, dim: int, index: Typed) -> Flow:
    """v c, n -> n c"""
    d = at(dim, input.ndim)
    out = replaced(input.axes, d, *(index.axes or (ONE,)))
    return Flow(out, frozen=[(input.axes[d], "looked up by index")])


@rule("index_add", "index_copy")
def index_add_axes(input: Typed, dim: int, index: Typed, source: Typed, alpha: object = 1) -> Flow:
    """b v c, n, b n c -> b v c, v and n frozen"""
    d = at(dim, input.ndim)
    same = [pair for i, pair in enumerate(zip(input.axes, source.axes, strict=True)) if i != d]
    reasons = [(axis, "looked up by index") for axis in (input.axes[d], source.axes[d], *index.axes)]
    return Flow(input.axes, same, reasons)


@rule("index_fill")
def index_fill_axes(input: Typed, dim: int, index: Typed, value: object) -> Flow:
    """b v c, n -> b v c, v frozen"""
    d = at(dim, input.ndim)
    return Flow(input.axes, frozen=[(axis, "looked up by index") for axis in (input.axes[d], *index.axes)])


@rule("index_put")
def index_put_axes(
    input: Typed, indices: Sequence[Typed | None], values: Typed, accumulate: bool = False
) -> Flow:
    """v c, n, n c -> v c, v frozen"""
    flow = index_axes(input, indices)
    _, fits = broadcast([flow.axes, values.axes])
    return Flow(input.axes, [*flow.same, *fits], [*flow.frozen, *_places(indices)])


@rule("gather")
def gather_axes(input: Typed, dim: int, index: Typed, *, sparse_grad: bool = False) -> Flow:
    """b n c, b m c -> b m c, n frozen (and where the index is shorter than the input, both)"""
    d = at(dim, input.ndim)
    same, reasons = _element_by_element(input.axes, index.axes, d)
    return Flow(index.axes, same, [*reasons, (input.axes[d], "looked up by index")])


@rule("scatter", "scatter_add", "scatter_reduce")
def scatter_axes(
    input: Typed,
    dim: int,
    index: Typed,
    src: object = None,
    reduce: str | None = None,
    *,
    include_self: bool = True,
) -> Flow:
    """b n c, b m c, b m c -> b n c, n and m frozen (and where one is shorter than another, both)"""
    d = at(dim, input.ndim)
    same, reasons = _element_by_element(input.axes, index.axes, d)
    if isinstance(src, Typed):
        more, odd = _element_by_element(src.axes, index.axes, d)
        same, reasons = [*same, *more], [*reasons, *odd, (src.axes[d], "looked up by index")]
    return Flow(input.axes, same, [*reasons, *((t.axes[d], "looked up by index") for t in (input, index))])


def _element_by_element(
    axes: Axes, index: Axes, d: int
) -> tuple[list[tuple[Axis, Axis]], list[tuple[Axis, str]]]:
    """Couple a tensor and an index of the same dimensions along all but the one that is looked up."""
    pairs = [pair for i, pair in enumerate(zip(axes, index, strict=True)) if i != d]
    odd = [axis for pair in pairs if pair[0].size != pair[1].size for axis in pair]
    return [p for p in pairs if p[0].size == p[1].size], [(axis, "looked up by index") for axis in odd]


@rule("roll", linear=LAYOUT)
def roll_axes(input: Typed, shifts: object, dims: Dims = None) -> Flow:
    """... n -> ... n, n frozen: its order matters"""
    return Flow(input.axes, frozen=[(input.axes[d], "its order matters") for d in dims_of(dims, input.ndim)])


@rule("flip", linear=LAYOUT)
def flip_axes(input: Typed, dims: Dims) -> Flow:
    """... n -> ... n, n frozen: its order matters"""
    return roll_axes(input, None, dims)


@rule("triu", "tril")
def triangle_axes(input: Typed, diagonal: int = 0) -> Flow:
    """... n m -> ... n m, both frozen"""
    return Flow(input.axes, frozen=[(axis, "its order matters") for axis in input.axes[-2:]])
