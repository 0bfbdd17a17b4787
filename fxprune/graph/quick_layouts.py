"""Layouts of what only rearranges a tensor: torch's own code tells them of an outline, without a fake run.

On a fake tensor a permutation takes up to three milliseconds, on its outline a hundredth of one.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily

__all__ = ["outline_of_tensor", "quick_layout"]

_METHODS = (
    *("chunk", "clone", "contiguous", "detach", "expand", "flatten", "movedim", "narrow", "permute"),
    *("repeat", "reshape", "select", "split", "split_with_sizes", "squeeze", "swapaxes", "t", "transpose"),
    *("unbind", "unflatten", "unsqueeze", "view"),
)
_OPERATORS = (*_METHODS, "_unsafe_view", "alias", "slice")
_LAYOUTS: frozenset[Any] = frozenset(
    {
        operator.getitem,
        *_METHODS,
        *(getattr(torch, name) for name in _METHODS if hasattr(torch, name)),
        *(
            getattr(packet, overload)
            for packet in (getattr(torch.ops.aten, n) for n in _OPERATORS if hasattr(torch.ops.aten, n))
            for overload in packet.overloads()
            if not overload.endswith("out")
        ),
    }
)
_PERMUTATIONS = frozenset({"permute", torch.permute, torch.ops.aten.permute.default})
_PLAIN = frozenset({int, str, type(None), type(...), torch.memory_format})


def quick_layout(op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Compute outlines of what a method or function gives that only lays a fake tensor out otherwise.

    Returns:
        One outline, or a tuple of several; None for other ops, and where an argument is out of the ordinary.

    Raises:
        What torch raises where the tensor can't be laid out so.
    """
    if op not in _LAYOUTS or not args or type(args[0]) is not FakeTensor:
        return None
    tensor, *rest = args
    lists = () if op is operator.getitem else (list, torch.Size)  # which pick elements there
    if tensor.layout is not torch.strided or tensor.is_complex():
        return None
    if not all(_is_plain(argument, lists) for argument in (*rest, *kwargs.values())):
        return None
    with unset_fake_temporarily():
        if op in _PERMUTATIONS and not kwargs and (permuted := _permuted(tensor, rest)) is not None:
            return permuted
        outline = outline_of_tensor(tensor)
        return getattr(outline, op)(*rest, **kwargs) if isinstance(op, str) else op(outline, *rest, **kwargs)


def outline_of_tensor(tensor: Tensor) -> Tensor:
    """Return a tensor of the same shape, strides and dtype that has neither numbers nor a device."""
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


def _permuted(tensor: Tensor, dims: list[Any]) -> Tensor | None:
    """Return the outline of a permutation, which torch computes in Python; None where the order is none."""
    order = dims[0] if len(dims) == 1 and isinstance(dims[0], (tuple, list)) else dims
    places = [dim % tensor.ndim if -tensor.ndim <= dim < tensor.ndim else dim for dim in order]
    if sorted(places) != [*range(tensor.ndim)]:
        return None
    shape, stride = ([of[place] for place in places] for of in (tensor.shape, tensor.stride()))
    return torch.empty_strided(shape, stride, dtype=tensor.dtype, device="meta")


def _is_plain(argument: Any, lists: tuple[type, ...]) -> bool:
    """Is an argument made of numbers alone?  (A flag as an index makes a copy.)"""
    if isinstance(argument, slice):
        argument = (argument.start, argument.stop, argument.step)
    if type(argument) is tuple or type(argument) in lists:
        return all(_is_plain(item, lists) for item in argument)
    return type(argument) in _PLAIN
