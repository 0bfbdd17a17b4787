"""Arithmetic on sizes that Python does in C: a call with a size becomes a node, so that it follows the input.

`max`, `min`, `math.sqrt` are patched where they live.  `int` and `float` are types, which libraries compare
by identity: they are replaced in those modules alone whose code asks for the number behind a size.
"""

from __future__ import annotations

import builtins
import contextlib
import dis
import functools
import itertools
import math
import operator
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import fx

from fxprune.graph.source_files import is_users

__all__ = ["AsksForNumber", "numbers_as_nodes", "shadowed_numbers", "ufunc_as_node", "want_shadow"]

# What stands for a function in the graph where the compilers of torch know another spelling.
SPELLED: dict[Callable[..., Any], Callable[..., Any]] = {math.sqrt: torch.sym_sqrt}
MATH = ("sqrt", "isqrt", "log", "log2", "log10", "exp", "pow", "gcd", "hypot", "fmod", "copysign", "fabs")
_ORIGINALS: dict[str, Callable[..., Any]] = {name: getattr(math, name) for name in MATH}
_BY_UFUNC: dict[str, Callable[..., Any]] = {
    **{name: _ORIGINALS[name] for name in ("sqrt", "log", "log2", "log10", "exp")},
    **{"power": operator.pow, "floor": math.floor, "ceil": math.ceil, "absolute": operator.abs},
    **{"add": operator.add, "subtract": operator.sub, "multiply": operator.mul},
    **{"divide": operator.truediv, "floor_divide": operator.floordiv, "remainder": operator.mod},
    **{"maximum": torch.sym_max, "minimum": torch.sym_min},
}


class AsksForNumber(BaseException):
    """A module's code calls `int` or `float` on a size: trace again with these replaced in it."""

    def __init__(self, namespace: dict[str, Any]) -> None:
        super().__init__(namespace.get("__name__"))
        self.namespace = namespace


def numbers_as_nodes(tracer: fx.Tracer) -> dict[tuple[Any, str], Callable[..., Any]]:
    """Return the functions that replace others while a model is traced, by where they live."""
    patched: dict[tuple[Any, str], Callable[..., Any]] = {
        (math, name): _traced(original, tracer) for name, original in _ORIGINALS.items()
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


def want_shadow(frame: types.FrameType) -> None:
    """Raise AsksForNumber where the code of a frame would be followed with its `int` replaced."""
    namespace = frame.f_globals
    if _SHADOW in namespace or not is_users(frame.f_code.co_filename):
        return
    if not any(map(_compares_types, _functions_of(namespace))):
        raise AsksForNumber(namespace)


_SHADOW = "__fxprune_shadowed__"


@contextlib.contextmanager
def shadowed_numbers(namespaces: list[dict[str, Any]], tracer: fx.Tracer) -> Iterator[None]:
    """Replace `int`, `float` and what was imported from `math` in the globals of some modules."""
    shadows = {"int": _shadow(int, torch.sym_int, tracer), "float": _shadow(float, torch.sym_float, tracer)}
    before: list[tuple[dict[str, Any], str, Any]] = []
    for namespace in namespaces:
        names: dict[str, Any] = {_SHADOW: True}
        names |= {name: shadow for name, shadow in shadows.items() if name not in namespace}
        for name, value in namespace.items():
            original = getattr(value, "__name__", None) if callable(value) else None
            if original in _ORIGINALS and value is _ORIGINALS[original]:
                names[name] = _traced(value, tracer)
        before += [(namespace, name, namespace.get(name, _MISSING)) for name in names]
        namespace.update(names)
    try:
        yield
    finally:
        for namespace, name, was in reversed(before):
            if was is _MISSING:
                namespace.pop(name, None)
            else:
                namespace[name] = was


_MISSING = object()


def _traced(function: Callable[..., Any], tracer: fx.Tracer) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any) -> Any:
        if not any(isinstance(a, fx.Proxy) for a in args):
            return function(*args)
        return tracer.create_proxy("call_function", SPELLED.get(function, function), args, {})

    return call


def _extreme(
    function: Callable[..., Any], of_two: Callable[..., Any], tracer: fx.Tracer
) -> Callable[..., Any]:
    """Patch `max` and `min`: the larger of two sizes is a node; what is compared by a key is decided."""

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


def _shadow(of: type, target: Callable[..., Any], tracer: fx.Tracer) -> type:
    """Make what `int` means in code that is followed: the same, but for a proxy."""

    class Meta(type):
        def __call__(cls, *args: Any, **kwargs: Any) -> Any:
            if len(args) == 1 and isinstance(args[0], fx.Proxy) and not kwargs:
                return tracer.create_proxy("call_function", target, args, {})
            return of(*args, **kwargs)

        def __instancecheck__(cls, x: Any) -> bool:
            if isinstance(x, of):
                return True
            if not isinstance(x, fx.Proxy):
                return False
            stands: Any = x.tracer
            return isinstance(stands.value_or_self(x), of)

        def __subclasscheck__(cls, other: type) -> bool:
            return issubclass(other, of)

        def __eq__(cls, other: object) -> bool:
            return other is cls or other is of

        def __hash__(cls) -> int:
            return hash(of)

        def __getattr__(cls, name: str) -> Any:
            return getattr(of, name)

        def __repr__(cls) -> str:
            return repr(of)

        def __or__(cls, other: Any) -> Any:
            return of | other

        def __ror__(cls, other: Any) -> Any:
            return other | of

    return Meta(of.__name__, (), {"__module__": "builtins", "__doc__": of.__doc__})


def _functions_of(namespace: dict[str, Any]) -> Iterator[types.CodeType]:
    """Yield the code of the functions and methods that a module defines."""
    name = namespace.get("__name__")
    for value in list(namespace.values()):
        if getattr(value, "__module__", None) != name:
            continue
        members = list(vars(value).values()) if isinstance(value, type) else [value]
        for member in members:
            code = getattr(getattr(member, "__func__", member), "__code__", None)
            if isinstance(code, types.CodeType) and code.co_name != "__init__":  # which has run
                yield from _nested(code)


def _nested(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _nested(constant)


def _compares_types(code: types.CodeType) -> bool:
    """Say whether code asks `type(x) is int`: a replaced `int` would not be it."""
    if not {"int", "float"} & set(code.co_names):
        return False
    steps = list(dis.get_instructions(code))
    return any(
        step.opname == "LOAD_GLOBAL" and step.argval in ("int", "float") and after.opname == "IS_OP"
        for step, after in itertools.pairwise(steps)
    )
