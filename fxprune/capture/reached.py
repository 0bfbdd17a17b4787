"""Which of a model's own functions may run in a call: those that others name, and so on."""

from __future__ import annotations

import functools
import sys
import types
from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn

from fxprune.graph.code_names import attribute_of, names_in, plain_functions
from fxprune.graph.nests import PLAIN
from fxprune.graph.source_files import is_users

__all__ = ["called", "reached", "reads_mode_outside_of_modules"]


def reached(functions: Iterable[types.FunctionType]) -> Iterator[types.FunctionType]:
    """Yield some functions, and the users' that these name in turn, each once."""
    queue, seen = list(functions), set[types.FunctionType]()
    while queue:
        function = queue.pop()
        if function in seen or not is_users(function.__code__.co_filename):
            continue
        seen.add(function)
        yield function
        queue += _named_in(function)


_TORCHS = frozenset(vars(nn.Module()))
# Methods that a call runs without their names.
_BY_PYTHON = {
    "forward",
    "__call__",
    "__getitem__",
    "__iter__",
    "__next__",
    "__len__",
    "__enter__",
    "__exit__",
}


def called(model: nn.Module, functions: Iterable[types.FunctionType]) -> Iterator[types.FunctionType]:
    """Yield those of some functions, and of those that they name, that a call of the model may run.

    Methods go by their names: one that no code names which may run itself (`from_pretrained`) is left out.
    """
    waiting: dict[str, list[types.FunctionType]] = {}
    said = set(_BY_PYTHON)
    other_names = _other_names(model)

    def ready(methods: Iterable[types.FunctionType]) -> Iterator[types.FunctionType]:
        for method in methods:
            names = (method.__name__, *other_names.get(method, ()))
            if not said.isdisjoint(names):
                yield method
            for name in names if said.isdisjoint(names) else ():
                waiting.setdefault(name, []).append(method)

    queue = [f for m in model.modules() for n, v in vars(m).items() if n not in _TORCHS for f in _held_in(v)]
    queue += ready(functions)
    seen = set[types.FunctionType]()
    while queue:
        function = queue.pop()
        if function in seen or not is_users(function.__code__.co_filename):
            continue
        seen.add(function)
        yield function
        named = [*_named_in(function)]
        queue += (f for f in named if not _is_method(f) or f.__name__ == "__init__")
        queue += ready(f for f in named if _is_method(f))
        new = {*names_in(function.__code__)} - said - {"__init__"}  # of a class that is named
        said |= new
        queue += (f for name in new for f in waiting.pop(name, ()))


def _other_names(model: nn.Module) -> dict[types.FunctionType, list[str]]:
    """Return the names that classes have for decorated methods, which call themselves otherwise."""
    found: dict[types.FunctionType, list[str]] = {}
    for cls in {cls for module in model.modules() for cls in type(module).__mro__}:
        for name, member in vars(cls).items() if is_users(_file_of(cls)) else ():
            for function in plain_functions(member):
                if function.__name__ != name:
                    found.setdefault(function, []).append(name)
    return found


def _file_of(cls: type) -> str:
    return getattr(sys.modules.get(cls.__module__), "__file__", None) or "<stdin>"


def _is_method(function: types.FunctionType) -> bool:
    inside, _, _ = function.__qualname__.rpartition(".")
    return bool(inside) and not inside.endswith("<locals>")


def _held_in(value: Any) -> Iterator[types.FunctionType]:
    """Yield the functions that a module's attribute is, or holds."""
    if type(value) in PLAIN:
        return
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    for one in (value, *inner):
        if not isinstance(one, (type, nn.Module)):
            yield from _functions_of(one)


def reads_mode_outside_of_modules(model: nn.Module, functions: Iterable[types.FunctionType]) -> bool:
    """Does any function that is reached look at `training`, and is no method of one of the model's modules?

    `lambda m, x: F.dropout(x, 0.1, m.training)` is none.
    """
    classes = {cls for module in model.modules() for cls in type(module).__mro__}
    methods = {f for cls in classes for member in vars(cls).values() for f in plain_functions(member)}
    return any("training" in names_in(f.__code__) for f in reached(functions) if f not in methods)


def _named_in(function: types.FunctionType) -> Iterator[types.FunctionType]:
    """Yield the functions that a function may call by a name, from a module that it names as well."""
    names = {*names_in(function.__code__)}
    for name in names:
        value = function.__globals__.get(name)
        yield from _functions_of(value)
        if isinstance(value, types.ModuleType) and is_users(getattr(value, "__file__", None) or "<frozen"):
            for inner in names:
                yield from _functions_of(vars(value).get(inner))
    for cell in function.__closure__ or ():
        try:
            yield from _functions_of(cell.cell_contents)
        except ValueError:  # it is not filled yet
            continue


def _functions_of(value: Any) -> Iterator[types.FunctionType]:
    """Yield a function, the methods of a class, or what is called partly; modules are instances elsewhere."""
    if isinstance(value, functools.partial):
        value = value.func
    if isinstance(value, type):
        members = () if issubclass(value, nn.Module) else vars(value).values()
        for member in members:
            yield from plain_functions(member)
    elif isinstance(value, (types.FunctionType, types.MethodType)) or attribute_of(value, "__wrapped__"):
        yield from plain_functions(value)
