"""Copy a model's modules and Python state, and share its tensors."""

from __future__ import annotations

import copy
import types
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import fx, nn

from fxprune.errors import UnsupportedModuleError, first_line
from fxprune.graph.nests import PLAIN

__all__ = [
    "copy_to_trace",
    "deep_copy",
    "empty_copies",
    "graph_shared",
    "own",
    "own_buffers",
    "structural_copy",
]

_HELD = ("_modules", "_parameters", "_buffers")
_ATOMIC = frozenset(
    {*PLAIN, bytes, type, type(...), types.FunctionType, types.BuiltinFunctionType, torch.dtype}
)


def structural_copy(
    model: nn.Module, tensor: Callable[[torch.Tensor], torch.Tensor] = lambda t: t
) -> nn.Module:
    """Return the model's modules and Python state copied, its tensors shared: safe to trace and to edit.

    `tensor` gives what stands for a tensor in the copy.
    """
    held = {id(t): t for m in model.modules() for t in _tensors(m.__dict__)}
    shared: dict[int, Any] = {key: tensor(t) for key, t in held.items()} | empty_copies(model)
    try:
        return deep_copy(model, shared)
    except TypeError:  # a lock, an open file: what can't be copied is shared as well
        state = [value for m in model.modules() for value in m.__dict__.values()]
        shared |= {id(value): value for value in state if not _can_be_copied(value, shared)}
        return deep_copy(model, shared)
    except Exception as error:
        raise _no_copy(model, shared) or error from error


def _no_copy(model: nn.Module, shared: Mapping[int, Any]) -> UnsupportedModuleError | None:
    """Describe what a module holds that can't be copied; None, where each of its attributes can."""
    for path, module in model.named_modules():
        for name, value in module.__dict__.items():
            try:
                copy.deepcopy(None if name in _HELD else value, dict(shared))
            except Exception as error:  # whatever a class says of it
                where = f"{path}.{name}".lstrip(".")
                kind, said = type(value).__name__, f"{type(error).__name__}: {first_line(error)}"
                return UnsupportedModuleError(
                    f"{where} of {type(model).__name__} is a {kind} that copy.deepcopy fails on ({said}): "
                    "where its class has a __getattr__, that must raise AttributeError for what it has not"
                )
    return None


def deep_copy(model: nn.Module, known: Mapping[int, Any]) -> nn.Module:
    """Copy a module as copy.deepcopy does, given what stands for some things, by their ids.

    Modules that say nothing of how they are copied are copied here, attribute by attribute: deepcopy takes
    several times as long for the dozens that each of them has.
    """
    memo = dict(known)
    modules = [*_inner_first(model, set())]
    classes = {*filter(_is_copied_as_usual, {type(m) for m in modules})}
    usual = [m for m in modules if id(m) not in memo and type(m) in classes]
    memo |= {id(m): object.__new__(type(m)) for m in usual}  # before any is filled: one may hold another
    for m in usual:
        memo[id(m)].__dict__.update({name: _copied(value, memo) for name, value in m.__dict__.items()})
    made: nn.Module = copy.deepcopy(model, memo)
    return made


def _inner_first(module: nn.Module, seen: set[nn.Module]) -> Iterator[nn.Module]:
    """Yield all modules, each after those in it: the copy of a graph module looks at what it holds."""
    seen.add(module)
    for child in module.children():
        if child not in seen:
            yield from _inner_first(child, seen)
    yield module


def _copied(value: Any, memo: dict[int, Any]) -> Any:
    if type(value) in _ATOMIC:
        return value
    if id(value) in memo:
        return memo[id(value)]
    if type(value) is not dict:
        return copy.deepcopy(value, memo)
    made: dict[Any, Any] = {}
    memo[id(value)] = made  # a dict may hold itself
    made.update({_copied(key, memo): _copied(item, memo) for key, item in value.items()})
    return made


def _is_copied_as_usual(cls: type) -> bool:
    """Is a module class copied by its attributes alone?"""
    usual = all(
        getattr(cls, name, None) is getattr(nn.Module, name, None)
        for name in ("__reduce_ex__", "__reduce__", "__getstate__", "__setstate__", "__new__")
    )
    named = ("__deepcopy__", "__getnewargs__", "__getnewargs_ex__")
    slots = any(vars(base).get("__slots__") for base in cls.__mro__)
    return usual and not slots and not any(hasattr(cls, name) for name in named)


def copy_to_trace(model: nn.Module) -> nn.Module:
    """Return a structural copy whose code may write to tensors that are plain attributes."""
    shared = {id(t) for t in (*model.parameters(), *model.buffers())}
    return structural_copy(
        model, lambda t: t if id(t) in shared or isinstance(t, nn.Parameter) else t.clone()
    )


def own_buffers(tensor: torch.Tensor) -> torch.Tensor:
    """Copy a buffer, share a parameter: for a structural copy whose code runs, and may write to buffers."""
    return tensor if isinstance(tensor, nn.Parameter) else tensor.clone()


def own(tensor: torch.Tensor) -> torch.Tensor:
    """Copy a tensor, weights as well: for a structural copy whose code runs, and may write to all of them."""
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
