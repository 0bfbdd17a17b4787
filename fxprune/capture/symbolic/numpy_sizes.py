"""NumPy's arrays of sizes: `np.array(x.shape[2:]) % 32`, of which each is followed as a number of its own."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
from torch import fx

__all__ = ["arrays_of_sizes"]


def arrays_of_sizes() -> dict[str, Callable[..., Any]]:
    """Return the functions of NumPy that take sizes while a model is traced, by their names."""
    return {"array": _of_objects(np.array), "asarray": _of_objects(np.asarray), "prod": _multiplied(np.prod)}


def _of_objects(array: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(array)
    def make(value: Any, *args: Any, **kwargs: Any) -> Any:
        sizes = None if args or kwargs else _sizes_in(value)
        if sizes is None:
            return array(value, *args, **kwargs)
        made = np.empty(len(sizes), dtype=object)
        for i, size in enumerate(sizes):  # all at once, NumPy would look into each
            made[i] = size
        return made

    return make


def _multiplied(prod: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(prod)
    def multiply(value: Any, *args: Any, **kwargs: Any) -> Any:
        sizes = None if args or kwargs else _sizes_in(value)
        return prod(value, *args, **kwargs) if sizes is None else functools.reduce(operator.mul, sizes, 1)

    return multiply


def _sizes_in(value: Any) -> list[Any] | None:
    """Return the numbers of a shape, or of a list with sizes among them; None of anything else."""
    if isinstance(value, fx.Proxy):
        return [*value] if isinstance(_for_example(value), (tuple, list)) else None
    if not isinstance(value, (list, tuple)) or not any(isinstance(v, fx.Proxy) for v in value):
        return None
    return [*value] if all(isinstance(_for_example(v), (int, float)) for v in value) else None


def _for_example(value: Any) -> Any:
    tracer: Any = value.tracer if isinstance(value, fx.Proxy) else None
    return value if tracer is None else tracer.value_or_self(value)
