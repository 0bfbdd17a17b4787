"""Recognise code that keeps results for its next call, and make it forget them."""

from __future__ import annotations

import contextlib
import functools
import sys
import types
from collections.abc import Iterator
from typing import Any

from torch import nn

from fxprune.graph.code_names import attribute_of
from fxprune.graph.source_files import is_users

__all__ = ["Caches", "has_caches", "kept_behind"]


def has_caches(model: nn.Module) -> bool:
    """Do the modules' files hold an `lru_cache`?  It would keep a fake tensor for whoever calls next."""
    files = {sys.modules.get(type(m).__module__) for m in model.modules()}
    files = {f for f in files if f is not None and not f.__name__.startswith("torch.")}
    return any(isinstance(v, functools._lru_cache_wrapper) for f in files for v in vars(f).values())


class Caches:
    """Functions under `lru_cache`, which keep what they were asked: of a capture, stand-ins."""

    def __init__(self) -> None:
        self._misses: dict[functools._lru_cache_wrapper[Any], int] = {}

    def note(self, cache: functools._lru_cache_wrapper[Any]) -> None:
        """Add one to those that are watched, from its state now on."""
        self._misses.setdefault(cache, cache.cache_info().misses)

    def forget(self) -> None:
        """Remove what those hold that were filled since: they fill again when they are asked."""
        for cache, before in self._misses.items():
            if cache.cache_info().misses != before:
                cache.cache_clear()  # (which counts from 0 again)
                self._misses[cache] = 0


def kept_behind(member: Any) -> Iterator[functools._lru_cache_wrapper[Any] | dict[Any, Any] | list[Any]]:
    """Yield the caches and tables in which decorators of a function, or a class's member, keep results."""
    front, seen = [member], set[int]()
    while front:
        value = front.pop()
        if id(value) in seen or not isinstance(value, _LAYERS + _TABLES):
            continue
        seen.add(id(value))
        if isinstance(value, functools._lru_cache_wrapper):
            yield value
        elif isinstance(value, _TABLES):
            if value is not member:
                yield value
            continue
        front += [attribute_of(value, name) for name in ("__wrapped__", "__func__", "fget")]
        code = getattr(value, "__code__", None)  # (closures of others, torch's and ours, hold no results)
        for cell in value.__closure__ or () if code and is_users(code.co_filename) else ():
            with contextlib.suppress(ValueError):  # not filled yet
                front.append(cell.cell_contents)


_LAYERS = (
    *(types.FunctionType, types.MethodType, functools._lru_cache_wrapper),
    *(property, staticmethod, classmethod),
)
_TABLES = (dict, list)
