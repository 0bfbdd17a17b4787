"""What a function of the user's computes by: its code, and the values that it holds."""

from __future__ import annotations

import functools
import marshal
import types
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from torch import Tensor, nn

from fxprune.graph.nests import PLAIN
from fxprune.graph.tensors import named_tensors

__all__ = ["parts_of_function"]


def parts_of_function(value: Any, seen: dict[int, Any] | None = None) -> Iterator[Any]:
    """Yield code, tensors and plain values that a callable depends on, however deep it holds them, in order.

    Of what its code reads by name: values, and functions of the same file.
    """
    seen = {} if seen is None else seen
    if isinstance(value, (Tensor, *PLAIN)):
        yield value
        return
    if id(value) in seen:
        return
    seen[id(value)] = value  # (held, or its number would be another's)
    yield f"{type(value).__module__}.{type(value).__qualname__}"
    for part in _parts(value):
        yield from parts_of_function(part, seen)


def _parts(value: Any) -> Iterator[Any]:
    """Yield what one value holds."""
    if isinstance(value, functools.partial):
        yield from (value.func, value.args, value.keywords)
    elif isinstance(value, types.MethodType):
        yield from (value.__func__, value.__self__)
    elif isinstance(value, types.FunctionType):
        code = marshal.dumps(value.__code__, 0).hex()  # (0: without what depends on how it was made)
        yield from (value.__qualname__, code, value.__defaults__, value.__kwdefaults__)
        yield from (_cells(value), _read_by_name(value))
    elif isinstance(value, Mapping):
        for key in value:
            yield from (key, value[key])
    elif isinstance(value, (list, tuple)):
        yield from value
    elif isinstance(value, (set, frozenset)):
        yield from sorted(map(repr, value))
    elif isinstance(value, np.ndarray):
        yield from (str(value.dtype), str(value.shape), value.tobytes().hex())
    elif isinstance(value, nn.Module):
        for name, module in value.named_modules():
            yield from (name, type(module).__qualname__, type(module).forward)
            yield {k: v for k, v in vars(module).items() if not k.startswith("_")}
        yield from (part for named in named_tensors(value) for part in named)
    elif _is_named(value):
        yield f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', repr(value))}"
    else:
        yield getattr(type(value), "__call__", None)  # noqa: B004  # of an object that is called: its code
        yield vars(value) if hasattr(value, "__dict__") else _without_address(value)


def _is_named(value: Any) -> bool:
    """Is it a module, a class, or a function written in C?"""
    return isinstance(value, (types.ModuleType, type, types.BuiltinFunctionType))


def _read_by_name(function: types.FunctionType) -> dict[str, Any]:
    """Return the values, and the functions of the same file, that a function reads by name."""
    found = {}
    for name in function.__code__.co_names:
        value = function.__globals__.get(name)
        own = isinstance(value, types.FunctionType) and value.__module__ == function.__module__
        if own or isinstance(value, (Tensor, np.ndarray, Mapping, list, tuple, *PLAIN)):
            found[name] = value
    return found


def _cells(function: types.FunctionType) -> list[Any]:
    """Return the values of the names that a function has from around it, where they are set."""
    found = []
    for cell in function.__closure__ or ():
        try:
            found.append(cell.cell_contents)
        except ValueError:  # not yet set
            found.append(None)
    return found


def _without_address(value: Any) -> str:
    return repr(value).split(" at 0x")[0]
