"""What a model's code can keep from one call to the next: attributes, lists, closures, global tables.

A capture runs that code with stand-ins for tensors, and none of them may stay behind.
"""

from __future__ import annotations

import contextlib
import functools
import types
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn

from fxprune.graph.caches import Caches
from fxprune.graph.code_names import names_in, plain_functions
from fxprune.graph.nests import PLAIN, Value
from fxprune.graph.source_files import is_users
from fxprune.graph.tensors import holds_attributes

__all__ = ["HeldState"]

_DEEPEST = 4  # containers and objects within each other that are looked into
_LARGEST = 1 << 20  # elements of a tensor that is saved
_MOST = 1000  # items of one container that are looked into
_TORCHS = {"training", "_modules", "_parameters", "_buffers", "_non_persistent_buffers_set"}
_TRACINGS = ("_tensor_constant", "_torchbind_obj", "_is_full_backward")
_NO_HOLDERS = (*PLAIN, Tensor, type, types.ModuleType)
Contents = dict[Any, Any]


class HeldState:
    """What is reachable from a model's modules and their code, as it was when this was made."""

    def __init__(self, model: nn.Module) -> None:
        self._seen, self._places = dict[int, Any](), list[_Place]()
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
            now = place.contents() if isinstance(place, _Module) else {}
            for name in place.before.keys() & now.keys():
                old, new = place.before[name], now[name]
                if type(old) in PLAIN and type(new) in PLAIN and (type(old), old) != (type(new), new):
                    found[place.name, name] = old
        return found

    def restore(self, *, plain: bool = True) -> None:
        """Put everything back, and the numbers of tensors that were written to, but buffers and large ones.

        plain: modules' numbers, flags and words as well; else, after a capture, functions' caches of it.
        """
        for place in self._places:
            place.restore(plain)
        if not plain:
            self._caches.forget()

    @contextlib.contextmanager
    def restored(self, *, plain: bool = True) -> Iterator[None]:
        """Put everything back in the end."""
        try:
            yield
        finally:
            self.restore(plain=plain)

    def _attributes(self, module: nn.Module, path: str) -> None:
        place = _Module(module.__dict__, path, inside=False)
        self._places += [place, _Buffers(module._buffers, path, inside=False)]
        for name, value in place.before.items():
            self._inside(value, f"{path}.{name}".lstrip("."), _DEEPEST)

    def _class(self, cls: type) -> None:
        held = {n: v for n, v in vars(cls).items() if not n.startswith("__") and _is_data(v)}
        self._places.append(_Class(cls, cls.__name__, held))
        for name, value in held.items():
            self._inside(value, f"{cls.__name__}.{name}", _DEEPEST)
        for member in vars(cls).values():
            self._caches.note(member)
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
                if _is_data(cell.cell_contents):
                    self._places.append(_Cell(cell, name))
        for value in (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()):
            self._inside(value, f"a default of {function.__name__}", _DEEPEST)
        space = function.__globals__
        named = {n: space[n] for n in dict.fromkeys(names_in(function.__code__)) if n in space}
        data = {name: value for name, value in named.items() if _is_data(value)}
        self._places.append(_Global(space, file, data))
        for name, value in named.items():
            self._caches.note(value)
            self._inside(value, f"{file}.{name}", 2)  # less deep: all that a file names

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
        elif kind := next((k for of, k in _KINDS.items() if isinstance(value, of)), None):
            self._places.append(kind(value, name))
            inner = [*_items_of(value).values()] if isinstance(value, dict) else [*value]
        elif holds_attributes(value):
            self._places.append(_Place(value.__dict__, name))
            inner = [*value.__dict__.values()]
        for item in inner[:_MOST]:
            self._inside(item, name, depth - 1)


class _Place:
    """One container, here a dict, and what it held.

    inside: its parts are named as the whole is.
    """

    def __init__(self, holder: Any, name: str, inside: bool = True) -> None:
        self.holder, self.name, self.inside = holder, name, inside
        self.before = self.contents()
        self.versions = {key: v._version for key, v in self.before.items() if _counts_writes(v)}
        self.values = {key: v.detach().clone() for key, v in self.saved().items()}

    def saved(self) -> dict[Any, Tensor]:
        """Select the tensors whose numbers are put back, were they written to."""
        return {k: v for k, v in self.before.items() if _counts_writes(v) and v.numel() <= _LARGEST}

    def contents(self) -> Contents:
        return _items_of(self.holder)

    def changed(self) -> Iterator[str]:
        now = self.contents()
        for key in {**self.before, **now}:
            if not _same(self.before.get(key, self), now.get(key, self)) or self._is_written(key):
                yield self.name if self.inside else f"{self.name}.{key}".lstrip(".")

    def restore(self, plain: bool) -> None:
        self.rewrite()
        now = self.contents()
        if list(now) != list(self.before) or any(now[key] is not v for key, v in self.before.items()):
            self.put(self.before)

    def put(self, contents: Contents) -> None:
        self.holder.clear()
        write = OrderedDict.__setitem__ if isinstance(self.holder, OrderedDict) else dict.__setitem__
        for key, value in contents.items():
            write(self.holder, key, value)

    def rewrite(self) -> None:
        """Put back the numbers of tensors that were written to."""
        for key, value in self.values.items():
            if self._is_written(key):
                self.before[key].detach().copy_(value)
                self.versions[key] = self.before[key]._version

    def _is_written(self, key: Any) -> bool:
        return key in self.versions and self.before[key]._version != self.versions[key]


class _Module(_Place):
    """What a module holds, but for what torch keeps there."""

    def contents(self) -> Contents:
        return {k: v for k, v in self.holder.items() if not _is_torchs(k)}

    def restore(self, plain: bool) -> None:
        self.rewrite()
        now = self.contents()
        for key in [k for k in now if k not in self.before and (plain or not isinstance(now[k], PLAIN))]:
            del self.holder[key]
        for key, value in self.before.items():
            both = value, now.get(key, ...)
            if both[1] is not value and (plain or not all(isinstance(v, PLAIN) for v in both)):
                self.holder[key] = value


class _Buffers(_Module):
    """A module's buffers: no capture writes to those, which may be large."""

    def saved(self) -> dict[Any, Tensor]:
        return {}


class _List(_Place):
    def contents(self) -> Contents:
        return dict(enumerate(self.holder))

    def put(self, contents: Contents) -> None:
        self.holder.clear()
        self.holder.extend(contents.values())


class _Set(_Place):
    def contents(self) -> Contents:
        return dict.fromkeys(self.holder)

    def put(self, contents: Contents) -> None:
        self.holder.clear()
        self.holder.update(contents)


class _Cell(_Place):
    def contents(self) -> Contents:
        return {0: self.holder.cell_contents}

    def put(self, contents: Contents) -> None:
        self.holder.cell_contents = contents[0]


class _Named(_Place):
    """Some names among others."""

    def __init__(self, holder: Any, name: str, held: Contents) -> None:
        self.names = [*held]
        super().__init__(holder, name, inside=False)


class _Global(_Named):
    def contents(self) -> Contents:
        return {name: self.holder[name] for name in self.names if name in self.holder}

    def put(self, contents: Contents) -> None:
        self.holder.update(contents)


class _Class(_Named):
    def contents(self) -> Contents:
        held = vars(self.holder)
        return {name: held[name] for name in self.names if name in held}

    def put(self, contents: Contents) -> None:
        for name, value in contents.items():
            setattr(self.holder, name, value)


_KINDS: dict[type, Callable[[Any, str], _Place]] = {dict: _Place, list: _List, deque: _List, set: _Set}


def _items_of(holder: dict[Any, Any]) -> Contents:
    """Read what a dict holds, not what a class of it makes of that when asked."""
    return {key: dict.__getitem__(holder, key) for key in holder}


def _is_users_class(cls: type) -> bool:
    """Is a class of a model's own code?  (A class knows its file by its functions.)"""
    functions = (f for member in vars(cls).values() for f in plain_functions(member))
    return any(is_users(f.__code__.co_filename) for f in functions)


@functools.lru_cache(1 << 14)
def _is_torchs(name: str) -> bool:
    """Is it an attribute of any module, or one that tracing adds?"""
    return name in _TORCHS or name.endswith("_hooks") or "_hooks_" in name or name.startswith(_TRACINGS)


def _is_data(value: Any) -> bool:
    """Is it a value that code may have kept, rather than code?"""
    return isinstance(value, (*PLAIN, Tensor, dict, list, deque, set, tuple))


def _counts_writes(value: Any) -> bool:
    return isinstance(value, Tensor) and not isinstance(value, nn.Parameter) and not value.is_inference()


def _same(before: Any, now: Any) -> bool:
    plain = isinstance(before, PLAIN) and type(before) is type(now)
    return before is now or (plain and (before == now or before != before))
