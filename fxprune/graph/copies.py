"""Copy a model's modules and Python state, and share its tensors."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

__all__ = ["structural_copy"]


def structural_copy(
    model: nn.Module, tensor: Callable[[torch.Tensor], torch.Tensor] = lambda t: t
) -> nn.Module:
    """Return the model's modules and Python state copied, its tensors shared: safe to trace and to edit.

    `tensor` gives what stands for a tensor in the copy.
    """
    held = {id(t): t for m in model.modules() for t in _tensors(m.__dict__)}
    shared: dict[int, Any] = {key: tensor(t) for key, t in held.items()}
    try:
        return copy.deepcopy(model, memo=dict(shared))
    except TypeError:  # a lock, an open file: what can't be copied is shared as well
        state = [value for m in model.modules() for value in m.__dict__.values()]
        shared |= {id(value): value for value in state if not _can_be_copied(value, shared)}
        return copy.deepcopy(model, memo=dict(shared))


def _can_be_copied(value: Any, shared: dict[int, Any]) -> bool:
    if isinstance(value, dict) and any(isinstance(v, nn.Module) for v in value.values()):
        return True  # its submodules, of which each has its turn
    try:
        copy.deepcopy(value, memo=dict(shared))
    except TypeError:
        return False
    return True


def _tensors(value: Any, depth: int = 4) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict) and depth:
        for item in value.values():
            yield from _tensors(item, depth - 1)
    elif isinstance(value, (list, tuple)) and depth:
        for item in value:
            yield from _tensors(item, depth - 1)
