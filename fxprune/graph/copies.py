"""Copy a model's modules and Python state, and share its tensors."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import fx, nn

__all__ = ["copy_to_trace", "empty_copies", "graph_shared", "own", "own_buffers", "structural_copy"]

_HELD = ("_modules", "_parameters", "_buffers")


def structural_copy(
    model: nn.Module, tensor: Callable[[torch.Tensor], torch.Tensor] = lambda t: t
) -> nn.Module:
    """Return the model's modules and Python state copied, its tensors shared: safe to trace and to edit.

    `tensor` gives what stands for a tensor in the copy.
    """
    held = {id(t): t for m in model.modules() for t in _tensors(m.__dict__)}
    shared: dict[int, Any] = {key: tensor(t) for key, t in held.items()} | empty_copies(model)
    try:
        return copy.deepcopy(model, memo=dict(shared))
    except TypeError:  # a lock, an open file: what can't be copied is shared as well
        state = [value for m in model.modules() for value in m.__dict__.values()]
        shared |= {id(value): value for value in state if not _can_be_copied(value, shared)}
        return copy.deepcopy(model, memo=dict(shared))


def copy_to_trace(model: nn.Module) -> nn.Module:
    """Return a structural copy whose code may write to tensors that are plain attributes."""
    shared = {id(t) for t in (*model.parameters(), *model.buffers())}
    return structural_copy(
        model, lambda t: t if id(t) in shared or isinstance(t, nn.Parameter) else t.clone()
    )


def own_buffers(tensor: torch.Tensor) -> torch.Tensor:
    """Give a copy that is run buffers of its own, which its code may write to."""
    return tensor if isinstance(tensor, nn.Parameter) else tensor.clone()


def own(tensor: torch.Tensor) -> torch.Tensor:
    """Give a copy that is run tensors of its own, weights as well, all of which its code may write to."""
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(tensor.detach().clone(), requires_grad=tensor.requires_grad)
    return tensor.clone()


def graph_shared(module: fx.GraphModule, copied: Callable[[nn.Module], nn.Module]) -> fx.GraphModule:
    """Return a module of the same graph, not a copy of it, that holds what `copied` makes of its holdings.

    `copied` is given a plain module with its submodules and tensors.
    """
    shell = nn.Module()
    shell.__dict__.update({held: module.__dict__[held] for held in _HELD})
    shell = copied(shell)
    made = copy.copy(module)
    made.__dict__ = {**module.__dict__, **{held: shell.__dict__[held] for held in _HELD}}
    return made


def empty_copies(model: nn.Module) -> dict[int, Any]:
    """Copy what modules hold that is empty, by its id: a dozen lists of hooks each, slow to deepcopy."""
    return {
        id(value): type(value)()
        for module in model.modules()
        for value in module.__dict__.values()
        if type(value) in (dict, OrderedDict, set) and not value
    }


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
