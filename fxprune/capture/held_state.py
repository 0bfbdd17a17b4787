"""What a model's code can keep from one call to the next: attributes, lists, closures, global tables.

A capture runs that code with stand-ins for tensors, and none of them may stay behind.
"""

from __future__ import annotations

import contextlib
import types
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from fxprune.capture.held_places import (
    KINDS,
    BufferPlace,
    CellPlace,
    ClassPlace,
    GlobalPlace,
    ModulePlace,
    Place,
    is_data,
    items_of,
)
from fxprune.graph.caches import Caches, kept_behind
from fxprune.graph.code_names import names_in, plain_functions
from fxprune.graph.nests import PLAIN, Value
from fxprune.graph.source_files import is_users
from fxprune.graph.tensors import holds_attributes

__all__ = ["HeldState"]

_DEEPEST = 4  # containers and objects within each other that are looked into
_MOST = 1000  # items of one container that are looked into
_NO_HOLDERS = (*PLAIN, Tensor, type, types.ModuleType)


class HeldState:
    """What is reachable from a model's modules and their code, as it was when this was made."""

    def __init__(self, model: nn.Module) -> None:
        self._seen, self._places = dict[int, Any](), list[Place]()
        self._functions, self._caches = set[types.FunctionType](), Caches()
        classes: dict[type, None] = {}
        for path, module in model.named_modules():
            self._attributes(module, path)
            classes |= dict.fromkeys(type(module).__mro__)
        for cls in filter(_is_users_class, classes):
            self._class(cls)

    def functions(self) -> list[types.FunctionType]:
        """List the functions that may run in a call, those of objects that are reachable as well."""
        classes = {cls for value in self._seen.values() for cls in type(value).__mro__}
        members = (member for cls in filter(_is_users_class, classes) for member in vars(cls).values())
        return [*self._functions, *(f for member in members for f in plain_functions(member))]

    def changed(self) -> list[str]:
        """Name what was replaced, added or removed since, and tensors that were written to."""
        return list(dict.fromkeys(name for place in self._places for name in place.changed()))

    def plain_changes(self) -> dict[tuple[str, str], Value]:
        """Return modules' numbers, flags and words that changed since: path and name -> what it was."""
        found: dict[tuple[str, str], Value] = {}
        for place in self._places:
            now = place.contents() if isinstance(place, ModulePlace) else {}
            for name in place.before.keys() & now.keys():
                old, new = place.before[name], now[name]
                if type(old) in PLAIN and type(new) in PLAIN and (type(old), old) != (type(new), new):
                    found[place.name, name] = old
        return found

    def restore(self, *, plain: bool = True, forget: bool = False) -> None:
        """Put everything back, and the numbers of tensors that were written to, but buffers and large ones.

        plain: numbers, flags and words that modules hold as well.
        forget: functions that keep their results forget them, where code ran with stand-ins for tensors.
        """
        for place in self._places:
            place.restore(plain)
        if forget:
            self._caches.forget()

    @contextlib.contextmanager
    def restored(self, *, plain: bool = True, forget: bool = False) -> Iterator[None]:
        """Put everything back in the end."""
        try:
            yield
        finally:
            self.restore(plain=plain, forget=forget)

    def _attributes(self, module: nn.Module, path: str) -> None:
        place = ModulePlace(module.__dict__, path, inside=False)
        place.buffers = BufferPlace(module._buffers, path, inside=False)
        self._places += [place, place.buffers]
        for name, value in place.before.items():
            self._inside(value, f"{path}.{name}".lstrip("."), _DEEPEST)

    def _class(self, cls: type) -> None:
        self._places.append(place := ClassPlace(cls))
        for name, value in place.before.items():
            self._inside(value, f"{cls.__name__}.{name}", _DEEPEST)
        for member in vars(cls).values():
            self._kept_behind(member, cls.__name__)
            for function in plain_functions(member):
                self._function(function)

    def _function(self, function: types.FunctionType) -> None:
        """Look at what a function closes over, at its defaults, and at the globals that it names."""
        if function in self._functions or not is_users(function.__code__.co_filename):
            return
        self._functions.add(function)
        file = function.__module__ or "__main__"
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            with contextlib.suppress(ValueError):  # a cell that is not filled yet
                self._inside(cell.cell_contents, name, _DEEPEST)
                if is_data(cell.cell_contents):
                    self._places.append(CellPlace(cell, name))
        for value in (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()):
            self._inside(value, f"a default of {function.__name__}", _DEEPEST)
        space = function.__globals__
        names = dict.fromkeys(names_in(function.__code__))
        named = {name: space[name] for name in names if name in space}
        self._places.append(GlobalPlace(space, file, names))
        for name, value in named.items():
            self._kept_behind(value, name)
            if isinstance(value, types.ModuleType):  # `rope.table(n)`
                for inner in names.keys() & vars(value).keys():
                    self._kept_behind(vars(value)[inner], inner)
                    self._tables_of(vars(value)[inner])
            self._inside(value, f"{file}.{name}", 2)  # less deep: all that a file names

    def _tables_of(self, function: object) -> None:
        """Look into the tables of a file that a function of it names: `_TABLES` of `rope.table`."""
        if not isinstance(function, types.FunctionType) or not is_users(function.__code__.co_filename):
            return
        space = function.__globals__
        for name in names_in(function.__code__):
            if isinstance(space.get(name), (dict, list, set)):
                self._inside(space[name], f"{function.__module__}.{name}", _DEEPEST)

    def _kept_behind(self, member: Any, name: str) -> None:
        """Look at what decorators of a function keep: results, in caches and tables of their own."""
        for kept in kept_behind(member):
            if isinstance(kept, (dict, list)):
                self._inside(kept, name, _DEEPEST)
            else:
                self._caches.note(kept)

    def _inside(self, value: Any, name: str, depth: int) -> None:
        """Look into a container, an object or a function."""
        if not depth or isinstance(value, _NO_HOLDERS) or id(value) in self._seen:
            return
        self._seen[id(value)] = value
        inner: list[Any] = []
        if isinstance(value, types.FunctionType):
            self._function(value)
        elif isinstance(value, types.MethodType):
            self._inside(value.__func__, name, depth)
        elif isinstance(value, tuple):
            inner = [*value]
        elif kind := next((k for of, k in KINDS.items() if isinstance(value, of)), None):
            self._places.append(kind(value, name))
            inner = [*items_of(value).values()] if isinstance(value, dict) else [*value]
        elif holds_attributes(value):
            self._places.append(Place(value.__dict__, name))
            inner = [*value.__dict__.values()]
        for item in inner[:_MOST]:
            self._inside(item, name, depth - 1)


def _is_users_class(cls: type) -> bool:
    """Is a class of a model's own code?  (A class knows its file by its functions.)"""
    functions = (f for member in vars(cls).values() for f in plain_functions(member))
    return any(is_users(f.__code__.co_filename) for f in functions)
