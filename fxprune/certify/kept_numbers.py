"""Numbers that count what a statistic runs over, for what is kept of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from fxprune.analysis.analysis import Analysis
from fxprune.analysis.counts.ledger import Count
from fxprune.analysis.counts.numbers import made_anew
from fxprune.graph.size_reads import ALL, size_read
from fxprune.result.selection import Selection
from fxprune.rules.axes import Axis

__all__ = ["kept_number"]


def kept_number(
    count: Count, node: fx.Node, analysis: Analysis, selection: Selection, true: Callable[[Axis], Axis]
) -> Any:
    """Return the number that a call has for the elements that are kept.

    true: gives an axis at the batch size of the run.
    """

    def size(axis: Axis) -> int:
        return selection.size(true(axis)) if count.counts(axis) else true(axis).size

    def read(of: fx.Node) -> Any:
        tensor, dim = size_read(of) or (of, None)
        sizes = torch.Size(size(axis) for axis in analysis.axes[tensor][0])
        return sizes if dim is None else sizes.numel() if dim == ALL else sizes[dim]

    def call(old: fx.Node, args: tuple[Any, ...]) -> Any:
        if old.op == "call_method":
            return getattr(args[0], str(old.target))(*args[1:], **old.kwargs)
        return old.target(*args, **old.kwargs)  # type: ignore[operator]

    def told(place: tuple[fx.Node, int | str]) -> float | None:
        return count.written(place, selection.size)

    return made_anew(count.number, (node, count.place), told, read, call)
