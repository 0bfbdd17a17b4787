"""Arithmetic on sizes that Python does in C: a call with a size becomes a node, so that it follows the input.

`max`, `min`, `math.sqrt` are patched where they live; for `int` and `float` see `number_types`.
"""

from __future__ import annotations

import builtins
import functools
import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from fxprune.capture.number_types import MATH, Sizes, followed

__all__ = ["numbers_as_nodes", "traced_sizes", "ufunc_as_node"]

# What stands for a function in the graph where the compilers of torch know another spelling.
SPELLED: dict[Callable[..., Any], Callable[..., Any]] = {math.sqrt: torch.sym_sqrt}
_BY_UFUNC: dict[str, Callable[..., Any]] = {
    **{name: MATH[name] for name in ("sqrt", "log", "log2", "log10", "exp")},
    **{"power": operator.pow, "floor": math.floor, "ceil": math.ceil, "absolute": operator.abs},
    **{"add": operator.add, "subtract": operator.sub, "multiply": operator.mul},
    **{"divide": operator.truediv, "floor_divide": operator.floordiv, "remainder": operator.mod},
    **{"maximum": torch.sym_max, "minimum": torch.sym_min},
}


def traced_sizes(tracer: fx.Tracer) -> Sizes:
    """Return sizes that are proxies; a call with one is a node."""

    def call(function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        return tracer.create_proxy("call_function", SPELLED.get(function, function), args, {})

    def is_a(x: Any, of: type) -> bool:
        stands: Any = x.tracer
        return isinstance(stands.value_or_self(x), of)

    return Sizes((fx.Proxy,), call, is_a)


def numbers_as_nodes(tracer: fx.Tracer) -> dict[tuple[Any, str], Callable[..., Any]]:
    """Return the functions that replace others while a model is traced, by where they live."""
    sizes = traced_sizes(tracer)
    patched: dict[tuple[Any, str], Callable[..., Any]] = {
        (math, name): followed(original, sizes) for name, original in MATH.items()
    }
    patched[builtins, "max"] = _extreme(builtins.max, torch.sym_max, tracer)
    patched[builtins, "min"] = _extreme(builtins.min, torch.sym_min, tracer)
    return patched


def ufunc_as_node(tracer: fx.Tracer, ufunc: Any, args: tuple[Any, ...]) -> Any:
    """Record a NumPy function of sizes as a node: `np.sqrt(x.shape[1])`."""
    if ufunc.__name__ not in _BY_UFUNC:
        return NotImplemented
    target = _BY_UFUNC[ufunc.__name__]
    return tracer.create_proxy("call_function", SPELLED.get(target, target), args, {})


def _extreme(
    function: Callable[..., Any], of_two: Callable[..., Any], tracer: fx.Tracer
) -> Callable[..., Any]:
    """Patch `max` and `min`: the larger of two sizes is a node; by a `key`, it is the example's."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if kwargs or not args:
            return function(*args, **kwargs)
        if len(args) > 1:
            values = args
        elif isinstance(args[0], (list, tuple, fx.Proxy)):
            values = tuple(args[0])
        else:
            return function(*args)
        if not any(_is_size(v) for v in values):
            return function(values) if len(args) == 1 else function(*args)
        return functools.reduce(lambda a, b: tracer.create_proxy("call_function", of_two, (a, b), {}), values)

    return call


def _is_size(value: Any) -> bool:
    if not isinstance(value, fx.Proxy):
        return False
    tracer: Any = value.tracer
    return type(tracer.decisions.structure(value)) in (int, float)
