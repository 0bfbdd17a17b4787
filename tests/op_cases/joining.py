"""Concatenations and pieces."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from op_cases.case import BOTH, Cases, indices

aten = torch.ops.aten


def assigned(index: Any) -> Callable[[Tensor, Tensor], Tensor]:
    def run(a: Tensor, b: Tensor) -> Tensor:
        a = a.clone()
        a[index] = b
        return a

    return run


def joining_cases(case: Cases) -> None:
    """Concatenations and pieces."""
    for name in ("cat", "concat", "concatenate"):
        case(name, lambda a, b, name=name: getattr(torch, name)([a, b], 1), (4, 6), (4, 5))
    case("cat", lambda a, b: torch.cat((a, b), dim=-1), (2, 4, 6), (2, 4, 6), captures=BOTH)
    case("cat", lambda a, b: torch.cat([a, b]), (4, 6), (2, 6))
    case("cat", lambda a: torch.cat([a, a], 1), (4, 6))
    case("cat", lambda a, b, c: torch.cat([a, b, c], axis=1), (2, 1, 6), (2, 4, 6), (2, 2, 6))
    case("stack", lambda a, b: torch.stack([a, b]), (4, 6), (4, 6), captures=BOTH)
    case("stack", lambda a, b: torch.stack((a, b), dim=-1), (4, 6), (4, 6))
    case("split", lambda a: torch.split(a, 4, 1), (4, 12), captures=BOTH)
    case("split", lambda a: a.split(5, dim=-1), (4, 12))
    case("split", lambda a: a.split([3, 4, 5], 1), (4, 12), captures=BOTH)
    case("split_with_sizes", lambda a: torch.split_with_sizes(a, [3, 9], 1), (4, 12))
    case("unsafe_split", lambda a: torch.unsafe_split(a, 6, 1), (4, 12))
    case("chunk", lambda a: a.chunk(3, -1), (4, 12), captures=BOTH)
    case("chunk", lambda a: torch.chunk(a, chunks=5, dim=1), (4, 12))
    case("chunk", lambda a, b: (torch.cat([a, b], 1).chunk(2, 1), a * 2), (4, 6), (4, 6))
    case("unsafe_chunk", lambda a: torch.unsafe_chunk(a, 2, 1), (4, 12))
    case("tensor_split", lambda a: torch.tensor_split(a, 5, 1), (4, 12))
    case("tensor_split", lambda a: a.tensor_split((3, 7), dim=1), (4, 12))
    case("tensor_split", lambda a: a.tensor_split([-2], 1), (4, 12), frozen=True)
    case("unbind", lambda a: a.unbind(0), (3, 4, 6), captures=BOTH)
    case("unbind", lambda a: torch.unbind(a, dim=-1), (4, 6, 2))
    case("unbind", lambda a: a.unbind(2), (2, 4, 3, 6, 5))
    case("select", lambda a: torch.select(a, 1, 2), (4, 6, 5))
    case("select", lambda a: a.select(-1, -1), (4, 6))
    case("select", lambda a, b: torch.cat([a, b], 1).select(1, 0), (2, 1, 6), (2, 4, 6), captures=BOTH)
    case("slice", lambda a: aten.slice.Tensor(a, 1, 2, 5), (4, 6))
    case("slice", lambda a: aten.slice.Tensor(a, 1, -4, 9223372036854775807), (4, 6))
    case("slice_scatter", lambda a, b: torch.slice_scatter(a, b, 1, 2, 5), (4, 6), (4, 3))
    case("slice_scatter", lambda a, b: torch.slice_scatter(a, b, 1, 0, 6, 2), (4, 6), (4, 3))
    case("select_scatter", lambda a, b: torch.select_scatter(a, b, 1, 2), (4, 6), (4,))
    case("written", assigned((slice(None), slice(2, 5))), (4, 6), (4, 3))
    case("written", assigned((Ellipsis, slice(None, 2))), (2, 4, 6), (4, 2))
    case("written", assigned((slice(None), 0)), (4, 6), (4,))
    case("written", assigned((slice(None), torch.tensor([4, 0, 1]))), (4, 6), (4, 3))
    case("written", assigned((slice(None), [4, 0, 1])), (4, 6), (4, 3))
    case("written", lambda a, i, b: assigned((slice(None), i))(a, b), (4, 6), torch.arange(3), (4, 3))
    case("written", assigned((Ellipsis, slice(2, 5))), (4, 5, 3, 4, 6), (4, 5, 3, 4, 3))
    case("narrow", lambda a: a.narrow(1, 2, 3), (4, 6), captures=BOTH)
    case("narrow", lambda a: torch.narrow(a, -1, 0, 4), (4, 6))
    case("narrow", lambda a: a.narrow(1, -2, 2), (4, 6))
    case("narrow", lambda a: torch.cat([a.narrow(1, 0, 0), a], 1), (4, 6))
    for index in (
        slice(2, 4),
        (slice(None), slice(1, 4)),
        (slice(None), slice(2, None)),
        (slice(None), slice(None, -2)),
        (slice(None), slice(-2, None)),
        (Ellipsis, slice(1, 3)),
        (slice(None), slice(None, None, 2)),
        (slice(None), slice(1, None, 3)),
        (slice(None), slice(0, 5, 2)),
        (slice(None), 0),
        (slice(None), -1),
        (Ellipsis, 2),
        (None, slice(None), None),
        (slice(1, 3), Ellipsis, slice(2, 6)),
        (slice(None), [0, 2, 2]),
        2,
        Ellipsis,
        None,
    ):
        case("getitem", lambda a, i=index: a[i], (4, 6, 8))
    case("getitem", lambda a: a[:, 1:4, None, 2], (4, 6, 8), captures=BOTH)
    case("getitem", lambda a, b: torch.cat([a, b], 1)[:, 1:], (2, 1, 6), (2, 4, 6))
    case("getitem", lambda a, b: torch.cat([a, b], 1)[:, 0], (2, 1, 6), (2, 4, 6))
    case("getitem", lambda a, i: a[i], (7, 6), indices(2, 5, below=7))
    case("getitem", lambda a, i: a[:, i], (4, 7, 6), indices(5, below=7))
    case("getitem", lambda a, i, j: a[i, :, j], (4, 6, 5), indices(3, below=4), indices(3, below=5))
    case("getitem", lambda a, i, j: a[:, i, j], (4, 6, 5), indices(3, below=6), indices(2, 1, below=5))
    case("aten.index", lambda a, i: aten.index.Tensor(a, [None, i]), (4, 7, 6), indices(5, below=7))
    case("aten.index", lambda a, i: aten.index.Tensor(a, [None, i]), (4, 7, 6, 2, 3), indices(5, below=7))
    case("_unsafe_index", lambda a, i: aten._unsafe_index.Tensor(a, [i]), (7, 6), indices(5, below=7))
    case("index_select", lambda a, i: a.index_select(1, i), (4, 7), indices(5, below=7), captures=BOTH)
    case("gather", lambda a, i: a.gather(1, i), (4, 7, 6), indices(4, 7, 6, below=7), captures=BOTH)
    case("gather", lambda a, i: torch.gather(a, dim=1, index=i), (4, 7, 6), indices(4, 3, 6, below=7))
    case("gather", lambda a, i: a.gather(1, i), (4, 7, 6), indices(2, 3, 6, below=7))
    some, more = indices(4, 3, 6, below=7), (4, 3, 6)
    case("scatter", lambda a, i: a.scatter(1, i, 2.0), (4, 7, 6), some, captures=BOTH)
    case("scatter", lambda a, i: torch.scatter(a, 1, i, value=2.0), (4, 7, 6), some)
    for short in (some, indices(2, 3, 6, below=7), indices(4, 2, 5, below=7)):
        case("scatter_add", lambda a, i, b: a.scatter_add(1, i, b), (4, 7, 6), short, more, captures=BOTH)
    case("scatter_add", lambda a, i, b: torch.scatter_add(a, 2, i, b), (4, 3, 8), some, more)
    case("scatter", lambda a, i, b: a.clone().scatter_(1, i[:, :1], b), (4, 7, 6), some, more)
    case("scatter_reduce", lambda a, i, b: a.scatter_reduce(1, i, b, "amax"), (4, 7, 6), some, more)
    case(
        "scatter_reduce",
        lambda a, i, b: torch.scatter_reduce(a, 1, i, b, reduce="mean"),
        (4, 7, 6),
        some,
        more,
    )
    rows = indices(3, below=7)
    case("index_add", lambda a, i, b: a.index_add(1, i, b), (4, 7, 6), rows, more, captures=BOTH)
    case("index_add", lambda a, i, b: torch.index_add(a, -2, i, b, alpha=2), (4, 7, 6), rows, more)
    case("index_copy", lambda a, i, b: a.index_copy(1, i, b), (4, 7, 6), torch.arange(3), more)
    case("index_fill", lambda a, i: a.index_fill(1, i, 2.0), (4, 7, 6), rows, captures=BOTH)
    case(
        "index_put", lambda a, i, b: aten.index_put.default(a, [None, i], b), (4, 7, 6), torch.arange(3), more
    )
    case("index_put", lambda a, i, b: aten.index_put.default(a, [i], b, True), (7, 6), rows, (6,))
    case("roll", lambda a: torch.roll(a, (1, 2), (1, 2)), (4, 5, 6, 3), captures=BOTH)
    case("roll", lambda a: a.roll(1, dims=-1), (4, 6))
    case("roll", lambda a: a.roll(1), (4, 6), frozen=True)
    case("flip", lambda a: a.flip(1), (4, 6))
    case("flip", lambda a: torch.flip(a, [0, -1]), (4, 5, 6), captures=BOTH)
    for name in ("triu", "tril"):
        case(name, lambda a, name=name: getattr(torch, name)(a, 1), (4, 5, 5))
