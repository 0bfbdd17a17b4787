"""Among equal elements, take the original's choice: which of them a `topk` finds is a matter of rounding.

    0.3 0.7 0.7 -topk(1)-> 1 or 2

A result is no worse for the other one.  What comes of it may differ in all: it reads other tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from fxprune.certify.relative_error import compare
from fxprune.graph.op_names import op_name
from fxprune.rules.registry import at

__all__ = ["agreed", "chooses"]

SAME = 1e-9  # relative to the largest element

_WITH_VALUES = {"topk", "sort", "max", "min", "kthvalue", "median", "mode", "cummax", "cummin"}
_OF_COUNT = {"topk", "kthvalue"}  # how many, or which, comes before the dimension
_INDICES = {"argmax", "argmin", "argsort"}


def chooses(node: fx.Node) -> bool:
    """Return whether a node picks or orders elements by their values (argmax, topk, sort)."""
    called = node.op in ("call_function", "call_method")
    return called and op_name(node.target) in _WITH_VALUES | _INDICES


def agreed(node: fx.Node, operand: Any, own: Any, wanted: list[Tensor]) -> tuple[Any, bool]:
    """Return what a node chose, the original's indices where values are equal; and whether it was another.

    operand: what it chose from.
    wanted: what the original's node of that name gave: values and indices, or indices.
    """
    if op_name(node.target) in _INDICES:
        if not isinstance(own, Tensor) or own.shape != wanted[0].shape or torch.equal(own, wanted[0]):
            return own, False
        found = [_picked(node, operand, indices) for indices in (wanted[0], own)]
        return (wanted[0], True) if compare(found[:1], found[1:]).error <= SAME else (own, False)
    if isinstance(own, Tensor) or len(own) != 2 or [t.shape for t in own] != [t.shape for t in wanted]:
        return own, False
    values, indices = own
    if torch.equal(indices, wanted[1]) or compare(wanted[:1], [values]).error > SAME:
        return own, False
    # As good a choice here too: the same values may lie elsewhere.
    if compare([values], [_picked(node, operand, wanted[1])]).error > SAME:
        return own, False
    return type(own)((values, wanted[1])), True


def _picked(node: fx.Node, operand: Tensor, indices: Tensor) -> Tensor:
    """Return the elements that indices choose."""
    name = op_name(node.target)
    names = ("k", "dim", "keepdim") if name in _OF_COUNT else ("dim", "keepdim")
    given: dict[str, Any] = dict(zip(names, node.args[1:], strict=False)) | node.kwargs
    dim = given.get("dim", None if name in ("argmax", "argmin") else -1)
    if dim is None:
        return operand.flatten()[indices]
    dim = at(dim, operand.ndim)
    flat = indices if indices.ndim == operand.ndim else indices.unsqueeze(dim)
    found = operand.gather(dim, flat)
    return found if indices.ndim == operand.ndim else found.squeeze(dim)
