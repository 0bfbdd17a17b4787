"""A method's own code inside its decorators: found, and put in again as other code."""

from __future__ import annotations

import contextlib
import functools
import types

from fxprune.graph.nests import Value

__all__ = ["undecorated", "with_code"]


def undecorated(function: types.FunctionType) -> types.FunctionType:
    """Return the function that stands in the source, where its decorators only call it."""
    while (wrapped := _wrapped(function)) is not None:
        function = wrapped
    return function


def with_code(
    function: types.FunctionType, code: types.CodeType, names: dict[str, object] | None = None
) -> types.FunctionType:
    """Return a function of other code, in the same decorators; it knows some more global names."""
    written = undecorated(function)
    known = written.__globals__ if names is None else {**written.__globals__, **names}
    new = types.FunctionType(code, known, written.__name__, written.__defaults__, written.__closure__)
    new.__kwdefaults__ = written.__kwdefaults__
    functools.update_wrapper(new, written)
    del new.__wrapped__  # type: ignore[attr-defined]
    return _decorated(function, new)


def _wrapped(function: types.FunctionType) -> types.FunctionType | None:
    """Find what a decorator's function calls: its closure holds that, and no cache of it."""
    wrapped = vars(function).get("__wrapped__")
    held = [value for _, value in _held(function)]
    if not isinstance(wrapped, types.FunctionType) or not any(value is wrapped for value in held):
        return None
    others = any(getattr(value, "__wrapped__", None) is wrapped for value in held)
    return None if others else wrapped


def _held(function: types.FunctionType) -> list[tuple[types.CellType, Value]]:
    held: list[tuple[types.CellType, Value]] = []
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):  # it has nothing yet
            held.append((cell, cell.cell_contents))
    return held


def _decorated(function: types.FunctionType, new: types.FunctionType) -> types.FunctionType:
    """Put the decorators of a function around another one."""
    wrapped = _wrapped(function)
    if wrapped is None:
        return new
    inside = _decorated(wrapped, new)
    changed = {id(cell): types.CellType(inside) for cell, value in _held(function) if value is wrapped}
    cells = tuple(changed.get(id(cell), cell) for cell in function.__closure__ or ())
    made = types.FunctionType(
        function.__code__, function.__globals__, function.__name__, function.__defaults__, cells
    )
    made.__kwdefaults__ = function.__kwdefaults__
    functools.update_wrapper(made, function)
    made.__wrapped__ = inside  # type: ignore[attr-defined]
    return made
