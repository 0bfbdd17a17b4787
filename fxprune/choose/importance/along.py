"""Lay a value or a weight out as vectors along one axis, whatever it is composed of."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fxprune.choose.importance.soft_masks import Use
from fxprune.rules.axes import Atom, Axis, Product, atoms_of, with_batch

__all__ = ["along", "vectors_of"]


def vectors_of(use: Use, value: Tensor, size: int) -> Tensor:
    """Lay out what a reader reads along its group, as of `along`; `size` is the number of samples."""
    head = use.group.inside.atom if use.group.inside is not None else None
    return along(value, use.axes, use.group.atom, head, size)


def along(tensor: Tensor, axes: Sequence[Axis], wanted: Atom, head: Atom | None, size: int) -> Tensor:
    """Lay a value out as vectors along one atom: [heads, places, n], or [places, n] without heads.

    `size` is the number of samples, which the axes' own may differ from.
    """
    pieces = [(tensor, [with_batch(axis, size) for axis in axes])]
    done = []
    while pieces:
        value, parts = pieces.pop()
        dim = next(d for d, part in enumerate(parts) if wanted in atoms_of(part))
        composed, before, after = parts[dim], parts[:dim], parts[dim + 1 :]
        if isinstance(composed, Atom):
            done.append(_vectors(value, parts, wanted, head))
            continue
        sizes = [part.size for part in composed.parts]
        if isinstance(composed, Product):
            pieces.append((torch.unflatten(value, dim, sizes), [*before, *composed.parts, *after]))
            continue
        for piece, part in zip(torch.split(value, sizes, dim), composed.parts, strict=True):
            if wanted in atoms_of(part):
                pieces.append((piece, [*before, part, *after]))
    return torch.cat(done, -2)


def _vectors(value: Tensor, parts: Sequence[Axis], wanted: Atom, head: Atom | None) -> Tensor:
    value = value.movedim(parts.index(wanted), -1)
    if head is None:
        return value.reshape(-1, wanted.size)
    others = [p for p in parts if p is not wanted]
    return value.movedim(others.index(head), 0).reshape(head.size, -1, wanted.size)
