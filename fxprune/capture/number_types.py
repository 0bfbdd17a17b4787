"""`int(n)` of a size: `int` is replaced in those modules alone whose code asks for it.

(Libraries compare types by identity.)
"""

from __future__ import annotations

import contextlib
import dis
import functools
import itertools
import math
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from fxprune.graph.source_files import is_users

__all__ = ["MATH", "AsksForNumber", "Sizes", "followed", "shadowed_numbers", "want_shadow"]

MATH: dict[str, Callable[..., Any]] = {
    name: getattr(math, name)
    for name in (
        *("sqrt", "isqrt", "log", "log2", "log10", "exp", "pow", "gcd", "hypot", "fmod", "copysign", "fabs"),
    )
}


@dataclass(frozen=True)
class Sizes:
    """What a size is while a capture runs a model's code.

    kinds: its types.  call: what a function gives for arguments among which there is one.  is_a: whether it
    is an `int` or a `float`.  builtins: other functions that are replaced where `int` is.
    """

    kinds: tuple[type, ...]
    call: Callable[[Callable[..., Any], tuple[Any, ...]], Any]
    is_a: Callable[[Any, type], bool]
    builtins: Mapping[str, Callable[..., Any]] = field(default_factory=dict)


class AsksForNumber(BaseException):
    """A module's code calls `int` or `float` on a size, or `len`: capture again with these replaced in it."""

    def __init__(self, namespace: dict[str, Any]) -> None:
        super().__init__(namespace.get("__name__"))
        self.namespace = namespace


def want_shadow(frame: types.FrameType) -> None:
    """Raise AsksForNumber where the code of a frame would be followed with its `int` replaced."""
    namespace = frame.f_globals
    if _SHADOW in namespace or not is_users(frame.f_code.co_filename):
        return
    if not any(map(_compares_types, _functions_of(namespace))):
        raise AsksForNumber(namespace)


_SHADOW = "__fxprune_shadowed__"


@contextlib.contextmanager
def shadowed_numbers(namespaces: list[dict[str, Any]], sizes: Sizes) -> Iterator[None]:
    """Replace `int`, `float` and what was imported from `math` in the globals of some modules."""
    int_, float_ = _shadow(int, torch.sym_int, sizes), _shadow(float, torch.sym_float, sizes)
    shadows: dict[str, Callable[..., Any]] = {"int": int_, "float": float_, **sizes.builtins}
    before: list[tuple[dict[str, Any], str, Any]] = []
    for namespace in namespaces:
        names: dict[str, Any] = {_SHADOW: True}
        names |= {name: shadow for name, shadow in shadows.items() if name not in namespace}
        for name, value in namespace.items():
            original = getattr(value, "__name__", None) if callable(value) else None
            if original in MATH and value is MATH[original]:
                names[name] = followed(value, sizes)
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


def followed(function: Callable[..., Any], sizes: Sizes) -> Callable[..., Any]:
    """Wrap a function: a size among its arguments makes a call of the capture's."""

    @functools.wraps(function)
    def call(*args: Any) -> Any:
        sized = any(isinstance(a, sizes.kinds) for a in args)
        return sizes.call(function, args) if sized else function(*args)

    return call


def _shadow(of: type, target: Callable[..., Any], sizes: Sizes) -> type:
    """Make what `int` means in code that is followed: the same, but for a size."""

    class Meta(type):
        def __call__(cls, *args: Any, **kwargs: Any) -> Any:
            if len(args) == 1 and isinstance(args[0], sizes.kinds) and not kwargs:
                return sizes.call(target, args)
            return of(*args, **kwargs)

        def __instancecheck__(cls, x: Any) -> bool:
            return isinstance(x, of) or (isinstance(x, sizes.kinds) and sizes.is_a(x, of))

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
    """Return whether code asks `type(x) is int`, which no replaced `int` would pass."""
    if not {"int", "float"} & set(code.co_names):
        return False
    steps = list(dis.get_instructions(code))
    return any(
        step.opname == "LOAD_GLOBAL" and step.argval in ("int", "float") and after.opname == "IS_OP"
        for step, after in itertools.pairwise(steps)
    )
