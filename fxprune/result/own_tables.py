"""Tables that a user's code computes anew at the original's width, of which the result keeps some channels.

Sines of positions lie in a buffer until the model is resized, or cast: then code that `forward` does not run
computes them again, from numbers that say the original's width.  Their module's class takes what is kept.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn

from fxprune.errors import UnsupportedModuleError
from fxprune.graph.classes import subclass_of
from fxprune.graph.nests import Value
from fxprune.result.own_code import Slot, Table

__all__ = ["TABLES", "beneath_tables", "tables_kept", "untabled"]

MADE = "_fxprune_of"  # in a class made here: the user's class
TABLES = "_fxprune_tables"  # of a module: what is kept of its tables, prune after prune


def tables_kept(model: nn.Module, tables: Iterable[Table]) -> None:
    """Let modules keep of a table that is computed anew what they keep of the one that they have."""
    for table in tables:
        module = model.get_submodule(table.path)
        vars(module)[TABLES] = (*vars(module).get(TABLES, ()), table)
        if not hasattr(type(module), MADE):
            users: Value = type(module)
            module.__class__ = _class(users)


@contextlib.contextmanager
def beneath_tables(module: nn.Module) -> Iterator[None]:
    """Take the class made here off a module meanwhile, so that another is made of the user's alone."""
    tabled, users = type(module), untabled(type(module))
    module.__class__ = users
    try:
        yield
    finally:
        if users is not tabled:
            now: Value = type(module)
            module.__class__ = _class(now)


def untabled(cls: type[nn.Module]) -> type[nn.Module]:
    """Return the user's class that a class made here inherits from; any other class as it is."""
    found: type[nn.Module] = vars(cls).get(MADE, cls)
    return found


@functools.lru_cache(maxsize=256)
def _class(users: Value) -> type[nn.Module]:
    def set_attribute(self: nn.Module, name: str, value: Value) -> None:
        users.__setattr__(self, name, _kept(self, name, value))

    def register(self: nn.Module, name: str, tensor: Tensor | None, persistent: bool = True) -> None:
        users.register_buffer(self, name, _kept(self, name, tensor), persistent)

    def apply(self: nn.Module, *args: Value, **kwargs: Value) -> nn.Module:
        with _original_numbers(self):
            applied: nn.Module = users._apply(self, *args, **kwargs)
        return applied

    members = {
        "__setattr__": set_attribute,
        "register_buffer": register,
        "_apply": apply,  # casts and moves: code may compute in full precision what a cast would round
        "__reduce_ex__": _reduced,
        MADE: users,
    }
    made: type[nn.Module] = subclass_of(users, members)
    return made


@contextlib.contextmanager
def _original_numbers(module: nn.Module) -> Iterator[None]:
    """Let a module say the original's width for a while, if its `forward` needs another.

    Of numbers that several prunes made smaller, what they were before the first.
    """
    tables = reversed(vars(module)[TABLES])
    slots = {Slot("", keys): old for table in tables for keys, old in table.numbers}
    now = {slot: slot.read(module) for slot in slots}
    for slot, old in slots.items():
        slot.write(module, old)
    try:
        yield
    finally:
        for slot, new in now.items():
            slot.write(module, new)


def _kept(module: nn.Module, name: str, value: Value) -> Value:
    """Take what is kept of a table that is as wide as the original's."""
    for table in vars(module).get(TABLES, ()):
        if table.name != name or not isinstance(value, Tensor) or value.ndim <= table.dim:
            continue
        if value.shape[table.dim] == table.old:
            value = torch.index_select(value, table.dim, torch.tensor(table.kept).to(value.device))
        elif table.numbers and not _is_right(module, name, value):
            raise UnsupportedModuleError(
                f"{type(module).__name__}.{name} is computed anew, at the pruned width: its channels would "
                "be others than those that are kept; do this to the original and prune it then"
            )
    return value


def _is_right(module: nn.Module, name: str, value: Tensor) -> bool:
    """Is it what stands there; or of its shape, and computed by `forward`, or a state beside weights?"""
    if _is_known(module, name, value):
        return True
    there = module._buffers.get(name)
    if isinstance(there, Tensor) and there.shape != value.shape:
        return False
    is_state = name in module._buffers and name not in module._non_persistent_buffers_set
    return (is_state and any(True for _ in module.parameters())) or _runs_forward(module)


def _is_known(module: nn.Module, name: str, value: Tensor) -> bool:
    """Is it what stands there, as a copy or of another type?"""
    there = module._buffers.get(name, vars(module).get(name))
    if not isinstance(there, Tensor) or there.shape != value.shape:
        return False
    return value.is_meta or torch.allclose(there.to(value), value, rtol=1e-2, atol=1e-3)


def _runs_forward(module: nn.Module) -> bool:
    """Does the module's own `forward` ask?  That was compared with the graph."""
    frame = sys._getframe(1)
    while frame.f_back is not None:
        frame = frame.f_back
        names = frame.f_code.co_varnames[: frame.f_code.co_argcount]
        if frame.f_code.co_name == "forward" and names and frame.f_locals.get(names[0]) is module:
            return True
    return False


def _reduced(self: nn.Module, protocol: int) -> tuple[object, ...]:
    """Return what makes the instance again: what makes one of the user's class, and its state."""
    users = getattr(type(self), MADE)  # which may inherit from the one made here
    make, args, *state = users.__reduce_ex__(self, protocol)
    plain = users.__reduce_ex__ is object.__reduce_ex__
    return _made_anew, (None, (users,)) if plain else (make, args), *state


def _made_anew(make: Callable[..., nn.Module] | None, args: tuple[Value, ...]) -> nn.Module:
    instance: nn.Module = args[0].__new__(args[0]) if make is None else make(*args)
    users: Value = type(instance)
    instance.__class__ = _class(users)
    return instance
