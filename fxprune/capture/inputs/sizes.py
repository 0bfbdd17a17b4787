"""Inputs worth trying: their sizes as tables of positions, the model's own numbers and habit suggest them.

Nothing is looked up by a name.  A table with a row for each token and the stride of the first layer give an
image's size; the numbers that a model's modules keep are tried as sizes; then the usual ones.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from typing import TypeVar

from torch import nn

from fxprune.capture.inputs.entry import Entry, tables_of

__all__ = ["image_sizes", "shapes_for", "tells_sizes"]

Size = tuple[int, int]
T = TypeVar("T")

EXTRA = 6  # at most so many tokens beside those of patches: class, distillation, registers
LARGEST = 2048
USUAL = (224, 32, 64, 256, 128, 96, 384, 512, 28, 48, 16, 192, 160, 176, 240, 288, 299, 320, 336, 448)
GRIDS = (14, 8, 16, 7, 4)  # patches along a side
LENGTHS = (16, 64, 128, 256, 512, 77, 8, 32, 1024)  # tokens
SIGNALS = (256, 1024, 128, 400, 3000, 16000, 64, 512, 2048)  # samples or frames
FRAMES = (8, 16, 4, 32, 2, 12)
MOST = 24  # of a list that may be long, how many are tried


def shapes_for(entry: Entry, model: nn.Module, known: Iterable[Size] = ()) -> Iterator[tuple[int, ...]]:
    """Shapes of one sample that a model with this first layer may take, the likeliest first.

    known: image sizes to try before all others.
    """
    if entry.kind == "ids":
        yield from ((n,) for n in _unique((16, *_rows(model), *_numbers(model), *LENGTHS)))
    elif entry.kind == "signal":
        yield from _signals(entry, model)
    elif entry.kind == "image":
        for size in _unique((*known, *image_sizes(entry.stride, model), *_usual(entry.stride))):
            yield (entry.width, *size)
        yield from _with_frames(entry, model)
        yield from (
            (*size, entry.width)
            for size in _unique((*image_sizes(entry.stride, model), *_usual(entry.stride)))[:8]
        )
        if entry.width == 1:  # a plane without a dimension for its one channel
            yield from image_sizes(entry.stride, model)
    elif entry.kind == "video":
        yield from _videos(entry, model)
    else:
        yield from _vectors(entry, model, known)


def image_sizes(stride: tuple[int, ...], model: nn.Module) -> list[Size]:
    """Heights and widths that the model's own tables and numbers stand for, with that stride of patches."""
    down, across = stride[-2], stride[-1]
    pairs = [(h * down, w * across) for h, w in _grids(model)]
    pairs += [p for p in _pairs(model) if p[0] % down == 0 and p[1] % across == 0]
    return [p for p in _unique(pairs) if min(p) >= max(down, across, 4)]


def tells_sizes(stride: tuple[int, ...], model: nn.Module) -> bool:
    """Does the model hold anything from which the size of its images can be read?"""
    own = [m for m in model.modules() if not type(m).__module__.startswith("torch.nn")]
    pairs = [v for m in own for v in vars(m).values() if isinstance(v, (tuple, list)) and len(v) == 2]
    sized = [p for p in pairs if all(map(_is_size, p)) and min(p) >= max(16, 2 * stride[-1])]
    return bool(_grids(model) or sized)


def _usual(stride: tuple[int, ...]) -> Iterator[Size]:
    down, across = stride[-2], stride[-1]
    yield from ((n, n) for n in USUAL if n % down == 0 and n % across == 0)
    yield from ((n * down, n * across) for n in GRIDS)


def _signals(entry: Entry, model: nn.Module) -> Iterator[tuple[int, ...]]:
    """[channels, time]; of one channel, the time alone as well."""
    rows = _rows(model)
    lengths = [n * entry.stride[0] * more for more in (1, 2, 4) for n in rows]
    lengths = _unique((*lengths, *SIGNALS, *_numbers(model)))
    yield from ((entry.width, n) for n in lengths)
    yield from ((n, entry.width) for n in lengths[:MOST])
    if entry.width == 1:
        yield from ((n,) for n in (*SIGNALS, *lengths))


def _videos(entry: Entry, model: nn.Module) -> Iterator[tuple[int, ...]]:
    """[channels, frames, height, width], and with channels and frames swapped."""
    step, stride = entry.stride[0], entry.stride[1:]
    tokens = [(n - extra, n) for n in _rows(model) for extra in range(EXTRA)]
    by_table = [
        (frames, (side * stride[0], side * stride[1]))
        for frames in _unique((*FRAMES, *_numbers(model), *range(2, 33)))
        if frames % step == 0
        for rest, _ in tokens
        if rest % (frames // step) == 0 and (side := _root(rest // (frames // step))) > 1
    ]
    sizes = _unique((*image_sizes(stride, model), *_usual(stride)))[:MOST]
    some = [(n, size) for n in _unique((*FRAMES, *_numbers(model))) if n <= 64 for size in sizes]
    for frames, size in _unique((*by_table[:MOST], *some))[: 8 * MOST]:
        yield (entry.width, frames, *size)
    for frames, size in _unique((*by_table[:MOST], *some))[:MOST]:
        yield (frames, entry.width, *size)


def _with_frames(entry: Entry, model: nn.Module) -> Iterator[tuple[int, ...]]:
    """Videos whose frames are read one by one."""
    sizes = _unique((*image_sizes(entry.stride, model), *_usual(entry.stride)))[:8]
    for frames, size in itertools.product(FRAMES[:3], sizes):
        yield (frames, entry.width, *size)
        yield (entry.width, frames, *size)


def _vectors(entry: Entry, model: nn.Module, known: Iterable[Size]) -> Iterator[tuple[int, ...]]:
    """Patches of an image that are cut out before the first layer; tokens; plain vectors."""
    known = list(known)
    for channels, side in entry.patches():
        sizes = _unique((*known, *image_sizes((side, side), model), *_usual((side, side))))
        yield from ((channels, *size) for size in sizes[: 2 * MOST])
    rows = _rows(model)
    counts = _unique([n - extra for extra in range(EXTRA) for n in rows if n > extra])
    yield from ((n, entry.width) for n in (*counts[:MOST], *LENGTHS))
    yield (entry.width,)


# ---------------------------------------------------------------- numbers that a model holds


def _rows(model: nn.Module) -> list[int]:
    """How many rows each table has: [n, features] or [1, n, features]."""
    shapes = [tuple(t.shape) for t in tables_of(model)]
    shapes = [s[1:] if len(s) == 3 and s[0] == 1 else s for s in shapes]
    return _unique(s[0] for s in shapes if len(s) == 2 and 1 < s[0] <= LARGEST**2 and s[1] > 1)


def _grids(model: nn.Module) -> list[Size]:
    """Patches down and across, of tables over both, and of square numbers of rows."""
    found: list[Size] = []
    for shape in (tuple(t.shape) for t in tables_of(model)):
        if len(shape) == 4 and shape[0] == 1:
            found += [(shape[2], shape[3]), (shape[1], shape[2])]
        if len(shape) == 3 and shape[0] > 1:
            found += [(shape[1], shape[2]), (shape[0], shape[1])]
    for n in _rows(model):
        found += [(side, side) for extra in range(EXTRA) if (side := _root(n - extra)) > 1]
    return [(h, w) for h, w in _unique(found) if 1 < h <= LARGEST and 1 < w <= LARGEST]


def _pairs(model: nn.Module) -> list[Size]:
    """Pairs of whole numbers that modules keep, and single ones as squares."""
    both: list[Size] = []
    for module in model.modules():
        for value in vars(module).values():
            if isinstance(value, (tuple, list)) and len(value) == 2 and all(map(_is_size, value)):
                both.append((value[0], value[1]))
    return _unique((*both, *((n, n) for n in _numbers(model))))[: 2 * MOST]


def _numbers(model: nn.Module) -> list[int]:
    """Whole numbers that modules of the model's own keep."""
    own = [m for m in model.modules() if not type(m).__module__.startswith("torch.nn")]
    return _unique(v for m in own for v in vars(m).values() if _is_size(v))[: 2 * MOST]


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 < value <= LARGEST


def _root(n: int) -> int:
    """The side of a square number, or 0."""
    side = math.isqrt(n) if n > 0 else 0
    return side if side * side == n else 0


def _unique(values: Iterable[T]) -> list[T]:
    return list(dict.fromkeys(values))
