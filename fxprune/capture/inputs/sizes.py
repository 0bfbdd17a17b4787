"""Inputs worth trying: their sizes as tables of positions, the model's own numbers and habit suggest them.

A table with a row for each token, as wide as what the first layer makes of a patch, gives with that layer's
stride the size of an image.  Pairs of numbers that modules keep are tried as sizes, then the usual ones, then
whatever else the model holds: whoever asks takes the first that the model takes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

from torch import nn

from fxprune.capture.inputs.entry import Entry
from fxprune.capture.inputs.numbers import EXTRA, Size, grids, numbers, pairs, root, rows, unique

__all__ = ["shapes_for", "told_sizes"]

SMALLEST = 16  # of an image that a pair of numbers may stand for
USUAL = (224, 32, 64, 256, 128, 96, 112, 384, 512, 28, 48, 16, 192, 160, 176, 240, 288, 299, 320, 336, 448)
GRIDS = (14, 8, 16, 7, 4)  # patches along a side
LENGTHS = (16, 64, 128, 256, 512, 77, 8, 32, 1024)  # tokens
SIGNALS = (256, 1024, 128, 400, 3000, 16000, 64, 512, 2048)  # samples or frames
FRAMES = (8, 16, 4, 32, 2, 12)
FEW, MOST = 6, 24  # of a list that may be long


def shapes_for(entry: Entry, model: nn.Module, known: Iterable[Size] = ()) -> Iterator[tuple[int, ...]]:
    """Yield shapes of one sample that a model with this first layer may take, the likeliest first.

    known: image sizes to try before all others.
    """
    if entry.kind == "ids":
        yield from ((n,) for n in unique((LENGTHS[0], *rows(model), *numbers(model), *LENGTHS)))
    elif entry.kind == "signal":
        yield from _signals(entry, model)
    elif entry.kind == "image":
        sizes = unique((*known, *_sizes(entry, entry.stride, model)))
        yield from ((entry.width, *size) for size in sizes[: 2 * MOST])
        yield from _other_layouts(entry, sizes[:FEW])
    elif entry.kind == "video":
        yield from _videos(entry, model, known)
    else:
        yield from _vectors(entry, model, known)


def told_sizes(entry: Entry, model: nn.Module) -> list[Size]:
    """Return heights and widths of images that the model tells: by a table of positions, by a pair kept."""
    return _told(entry, entry.stride, model)


def _told(entry: Entry, stride: tuple[int, ...], model: nn.Module) -> list[Size]:
    down, across = stride[-2], stride[-1]
    found = [(h * down, w * across) for h, w in grids(model, entry.out or None)]
    least = max(SMALLEST, 2 * down, 2 * across)
    kept = [p for p in pairs(model) if p[0] % down == 0 and p[1] % across == 0 and min(p) >= least]
    return unique((*found, *kept))


def _sizes(entry: Entry, stride: tuple[int, ...], model: nn.Module) -> list[Size]:
    """Return all heights and widths worth a trial, with that stride of patches."""
    down, across = stride[-2], stride[-1]
    usual = [(n, n) for n in USUAL if n % down == 0 and n % across == 0]
    usual += [(n * down, n * across) for n in GRIDS]
    kept = [(n, n) for n in numbers(model) if n % down == 0 and n % across == 0 and n >= SMALLEST]
    loose = [(h * down, w * across) for h, w in grids(model)]
    return unique((*_told(entry, stride, model), *usual[:MOST], *kept, *loose))


def _other_layouts(entry: Entry, sizes: list[Size]) -> Iterator[tuple[int, ...]]:
    """Yield images with channels last; videos, of which frames are read one by one; planes of one channel."""
    yield from ((*size, entry.width) for size in sizes)
    for frames, size in itertools.product(FRAMES[:3], sizes):
        yield (frames, entry.width, *size)
        yield (entry.width, frames, *size)
    if entry.width == 1:
        yield from sizes


def _signals(entry: Entry, model: nn.Module) -> Iterator[tuple[int, ...]]:
    """Yield [channels, time]; of one channel, the time alone as well."""
    tables = [n * entry.stride[0] * more for more in (1, 2, 4) for n in rows(model)]
    lengths = unique((*tables, *SIGNALS, *numbers(model)))[:MOST]
    yield from ((entry.width, n) for n in lengths)
    if entry.width == 1:
        yield from ((n,) for n in (*SIGNALS, *lengths))
    yield from ((n, entry.width) for n in lengths)


def _videos(entry: Entry, model: nn.Module, known: Iterable[Size]) -> Iterator[tuple[int, ...]]:
    """Yield [channels, frames, height, width], and with channels and frames swapped."""
    step, stride = entry.stride[0], entry.stride[1:]
    frames = [n for n in unique((*FRAMES, *numbers(model), *range(2, 33))) if n % step == 0 and n <= 64]
    by_table = [
        (n, (side * stride[0], side * stride[1]))
        for n in frames
        for tokens in rows(model)
        for extra in range(EXTRA)
        if (tokens - extra) % (n // step) == 0 and (side := root((tokens - extra) // (n // step))) > 1
    ]
    known = list(known)
    usual = itertools.product(frames[:FEW], _sizes(entry, stride, model)[:FEW])
    guesses = unique((*itertools.product(frames[:FEW], known), *by_table[:MOST], *usual))
    for n, size in guesses:
        yield (entry.width, n, *size)
        yield (n, entry.width, *size)


def _vectors(entry: Entry, model: nn.Module, known: Iterable[Size]) -> Iterator[tuple[int, ...]]:
    """Yield patches of an image that are cut out before the first layer; tokens; plain vectors."""
    known = list(known)
    for channels, side in entry.patches():
        sizes = unique((*known, *_sizes(entry, (side, side), model)))
        yield from ((channels, *size) for size in sizes[: 2 * MOST])
    counts = unique(n - extra for extra in range(EXTRA) for n in rows(model) if n > extra)
    yield from ((n, entry.width) for n in counts[:MOST])
    yield (entry.width,)
    yield from ((n, entry.width) for n in LENGTHS)
