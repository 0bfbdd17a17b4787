"""Run an op that a user taught on the kept elements alone: its masked form, where none was given.

    [a . b c .] -compact-> [a b c] -op-> [x y z] -scatter-> [x 0 y z 0]

What the certificate can say of such an op: on zero-masked operands it gives the same (then nothing more is
asked), or its rule names a shrinking axis as `reduced`, and it treats the elements along that axis alike:
in reverse order they give the same.  Neither says that the statistic is the one that is wanted; an
`Op(.., masked=)` does.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from fxprune.graph.nests import leaves
from fxprune.graph.tensors import is_float
from fxprune.result.selection import Selection
from fxprune.rules.axes import Axis
from fxprune.rules.registry import Axes, Bound

__all__ = ["alike", "compacted", "flipped", "respelled", "scattered", "sliced_module"]


def compacted(t: Tensor, axes: Axes, selection: Selection) -> Tensor:
    """Return the kept elements of a tensor, each head's own included."""
    mask = selection.mask(axes)
    if mask is None:
        return t
    return t[mask.to(t.device).expand_as(t)].reshape([selection.size(axis) for axis in axes])


def scattered(t: Tensor, axes: Axes, selection: Selection) -> Tensor:
    """Return the kept elements back in their places, zeros elsewhere."""
    mask = selection.mask(axes)
    if mask is None:
        return t
    shape = [axis.size for axis in axes]
    return t.new_zeros(shape).masked_scatter(mask.to(t.device).expand(shape), t)


def flipped(t: Tensor, axes: Axes, reduced: Sequence[Axis]) -> Tensor:
    """Return the tensor in reverse order along every axis that is reduced."""
    return t.flip([d for d, axis in enumerate(axes) if axis in reduced])


def respelled(value: Any, spelled: Any, selection: Selection) -> Any:
    """Return an argument with the sizes of axes as the kept elements have them."""
    if spelled is None or value is None:
        return value
    if isinstance(spelled, (list, tuple)) and isinstance(value, (list, tuple)):
        pairs = zip(value, spelled, strict=True)
        return type(value)(respelled(v, s, selection) for v, s in pairs)
    if isinstance(spelled, slice) and isinstance(value, slice):
        start, stop = (
            respelled(v, s, selection) for v, s in ((value.start, spelled.start), (value.stop, spelled.stop))
        )
        return slice(start, stop, value.step)
    if isinstance(spelled, Bound):
        size = selection.size(spelled.axis)
        return -size if value < 0 else size
    return selection.size(spelled) if isinstance(value, int) and value >= 0 else value


def sliced_module(
    module: nn.Module, cut: Callable[[Tensor, str], Tensor], sizes: dict[str, Any]
) -> nn.Module:
    """Return a copy of a module with its tensors cut by name, and some of its attributes set."""
    new = copy.copy(module)
    new._parameters = {
        name: None if t is None else nn.Parameter(cut(t, name), requires_grad=False)
        for name, t in module._parameters.items()
    }
    new._buffers = {name: None if t is None else cut(t, name) for name, t in module._buffers.items()}
    for name, value in sizes.items():
        setattr(new, name, value)
    return new


def alike(a: Any, b: Any, tolerance: float = 1e-9) -> bool:
    """Are two nests of tensors equal up to rounding?"""
    return all(
        x.shape == y.shape and bool(((x - y).abs() <= tolerance * x.abs().max().clamp_min(1e-300)).all())
        for x, y in zip(leaves(a, Tensor), leaves(b, Tensor), strict=True)
        if x.numel() and is_float(x)
    )
