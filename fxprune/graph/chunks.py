"""Large weights, some rows at a time: no second copy of a whole weight is ever made."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

__all__ = ["in_blocks", "taken"]

BLOCK = 1 << 15  # elements: small enough that what is freed leaves no holes that nothing fits into


def in_blocks(t: Tensor) -> Iterable[Tensor]:
    """Yield consecutive slices along dim 0, of about BLOCK elements each."""
    return torch.split(t, _rows(t.shape)) if t.ndim else [t]


def taken(t: Tensor, kept: Sequence[np.ndarray | None]) -> Tensor:
    """Return a copy of the elements at the kept positions of every dimension (None, or no entry: all)."""
    indices = {d: torch.from_numpy(k).to(t.device) for d, k in enumerate(kept) if k is not None}
    if len(indices) < 2:
        return t.index_select(*indices.popitem()) if indices else t.clone()
    shape = [len(indices[d]) if d in indices else n for d, n in enumerate(t.shape)]
    out = t.new_empty(shape)
    rows = indices.pop(0, None)
    step = _rows(t.shape)
    for start in range(0, shape[0], step):
        block = slice(start, start + step)
        part = t[block] if rows is None else t.index_select(0, rows[block])
        *inner, (last, index) = indices.items()
        for dim, chosen in inner:
            part = part.index_select(dim, chosen)
        torch.index_select(part, last, index, out=out[block])
    return out


def _rows(shape: Sequence[int]) -> int:
    return max(1, BLOCK // max(1, math.prod(shape[1:])))
