"""Code that asks for the type of a value: `type(x) is Tensor` of a stand-in, which is of another type.

`type` is replaced in the modules that name it.  Python's `match` looks where nothing can be replaced:
symbolic tracing leaves it to torch.export.
"""

from __future__ import annotations

import builtins
import contextlib
import dis
import functools
import sys
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import nn

from fxprune.capture.patched import patch
from fxprune.graph.code_names import codes_in, names_of, steps_of
from fxprune.graph.process_lock import this_thread_only
from fxprune.graph.source_files import is_users

__all__ = [
    "MATCH",
    "followed_classes",
    "followed_instances",
    "followed_types",
    "refuse_matches",
    "refuse_typed_checks",
]

MATCH = "`match` looks at types"
_LOAD_ATTR = dis.opmap["LOAD_ATTR"]
_MATCHES = {dis.opmap["MATCH_MAPPING"], dis.opmap["MATCH_SEQUENCE"]}  # (MATCH_CLASS asks `__class__`)


@contextlib.contextmanager
def followed_types(
    functions: Iterable[types.FunctionType], type_of: Callable[[Any], type | None]
) -> Iterator[None]:
    """Let `type(x)` answer by `type_of` in the modules of functions that name it; None: by Python's own."""
    spaces = {id(f.__globals__): f.__globals__ for f in functions if _asks_types(f.__code__)}
    replaced = [space for space in spaces.values() if "type" not in space]
    for space in replaced:
        space["type"] = _asking(type_of)
    try:
        yield
    finally:
        for space in replaced:
            del space["type"]


@contextlib.contextmanager
def followed_classes(
    functions: Iterable[types.FunctionType], type_of: Callable[[Any], type | None], kinds: Iterable[type]
) -> Iterator[None]:
    """Let `x.__class__` answer by `type_of` for values of some kinds, if any of the functions asks for it.

    Reading any attribute of such a value is slower meanwhile.
    """
    if not any("__class__" in names_of(f.__code__) for f in functions):
        yield
        return
    here = this_thread_only()

    def asking(of: Callable[[Any, str], Any]) -> Callable[[Any, str], Any]:
        def get(x: Any, name: str) -> Any:
            if name == "__class__" and here():
                code, at = (caller := sys._getframe(1)).f_code, caller.f_lasti
                if code.co_code[at] == _LOAD_ATTR and is_users(code.co_filename):
                    return type_of(x) or of(x, name)
            return of(x, name)

        return get

    with contextlib.ExitStack() as patches:
        for kind in kinds:
            patch(patches, kind, "__getattribute__", asking(getattr(kind, "__getattribute__")))  # noqa: B009
        yield


@contextlib.contextmanager
def followed_instances(
    functions: Iterable[types.FunctionType], stands_for: Callable[[Any], Any]
) -> Iterator[None]:
    """Let `isinstance(n, int)` answer by what a size stands for, in the modules of functions that ask so.

    stands_for: returns a value itself where it stands for no other.
    """
    here, own = this_thread_only(), builtins.isinstance

    def check(x: Any, classes: Any) -> bool:
        return own(x, classes) or (here() and own(stands_for(x), classes))

    asking = (f for f in functions if {"isinstance"} < names_of(f.__code__) & _NUMBERS)
    spaces = {id(f.__globals__): f.__globals__ for f in asking}
    replaced = [space for space in spaces.values() if "isinstance" not in space]
    for space in replaced:
        space["isinstance"] = check
    try:
        yield
    finally:
        for space in replaced:
            del space["isinstance"]


_NUMBERS = {"isinstance", "int", "float", "bool", "Number", "Integral", "Real", "Rational", "Complex"}


def refuse_matches(model: nn.Module, functions: Iterable[types.FunctionType]) -> None:
    """Refuse functions of the model's own packages that match sequences or mappings.

    Raises:
        NotImplementedError: torch.export follows them, with tensors.
    """
    own = {_package(type(module)) for module in model.modules()}
    for function in functions:
        line = _line_of_match(function.__code__) if _package(function) in own else None
        if line is not None:
            raise NotImplementedError(f"{MATCH} at {function.__code__.co_filename}:{line}")


_TYPED = {
    *("FloatTensor", "DoubleTensor", "HalfTensor", "BFloat16Tensor", "BoolTensor", "ByteTensor"),
    *("CharTensor", "ShortTensor", "IntTensor", "LongTensor"),
}


_CALLS = {"CALL", "PRECALL", "CALL_FUNCTION"}  # as versions of Python name it


def refuse_typed_checks(functions: Iterable[types.FunctionType]) -> None:
    """Refuse `isinstance(x, torch.FloatTensor)`, which asks for the dtype and the device of a stand-in.

    Raises:
        NotImplementedError: names the function, and what to write.
    """
    for function in functions:
        if (line := _line_of_typed_check(function.__code__)) is not None:
            where = f"{function.__code__.co_filename}:{line}"
            raise NotImplementedError(
                f"the code at {where} asks by isinstance for a tensor type of one dtype, which no graph "
                f"holds: compare x.dtype"
            )


@functools.lru_cache(1 << 14)
def _line_of_typed_check(code: types.CodeType) -> int | None:
    """Return the first line at which code gives a typed tensor class to `isinstance`, alone or in a tuple.

    Code that makes such a tensor (`torch.LongTensor(rows)`) names the class as well.
    """
    names = names_of(code)
    if "isinstance" not in names or _TYPED.isdisjoint(names):
        return None
    for inner in codes_in(code):
        asking = named = False
        for line, step in steps_of(inner):
            if step.argval == "isinstance" or step.opname.startswith(("STORE_", "POP_")):
                asking, named = step.argval == "isinstance", False
            elif step.opname in _CALLS:
                if asking and named and step.arg == 2:
                    return line
                named = False
            named |= asking and step.argval in _TYPED
    return None


def _package(thing: Any) -> str:
    return str(thing.__module__).partition(".")[0]


def _asks_types(code: types.CodeType) -> bool:
    return "type" in names_of(code)


@functools.lru_cache(1 << 14)
def _line_of_match(code: types.CodeType) -> int | None:
    """Return the first line at which code matches a sequence or a mapping."""
    for inner in codes_in(code):
        if _MATCHES.isdisjoint(inner.co_code[::2]):
            continue
        for line, step in steps_of(inner):
            if step.opcode in _MATCHES:
                return line
    return None


def _asking(type_of: Callable[[Any], type | None]) -> type:
    """Make what `type` means in code that is followed: the same, but for stand-ins."""
    own = builtins.type

    class Meta(own):  # type: ignore[misc, valid-type]
        def __call__(cls, *args: Any, **kwargs: Any) -> Any:
            found = type_of(args[0]) if len(args) == 1 and not kwargs else None
            return own(*args, **kwargs) if found is None else found

        def __instancecheck__(cls, x: Any) -> bool:
            return isinstance(x, own)

        def __subclasscheck__(cls, other: Any) -> bool:
            return issubclass(other, own)

        def __eq__(cls, other: object) -> bool:
            return other is cls or other is own

        def __hash__(cls) -> int:
            return hash(own)

        def __getitem__(cls, item: Any) -> Any:
            return own[item]

        def __getattr__(cls, name: str) -> Any:
            return getattr(own, name)

    return Meta("type", (), {"__module__": "builtins"})
