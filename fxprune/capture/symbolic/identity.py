"""Find code that compares dtypes by `is`: to that a stand-in for one has no answer."""

from __future__ import annotations

import builtins
import dis
import functools
import types
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from fxprune.graph.code_names import codes_in, plain_functions
from fxprune.graph.source_files import is_users

__all__ = ["any_compares_dtypes", "compares_dtypes"]

_DTYPES = {"dtype", *(name for name, value in vars(torch).items() if isinstance(value, torch.dtype))}
_IS = dis.opmap["IS_OP"]


@functools.lru_cache(1 << 14)
def compares_dtypes(code: types.CodeType) -> bool:
    """Does some code compare what may be a dtype by `is`, with something else than None?"""
    if _IS not in code.co_code[::2] or not any(map(_is_of_dtypes, (*code.co_names, *code.co_varnames))):
        return False
    before: list[dis.Instruction] = []
    for step in dis.get_instructions(code):
        operands = before[-_LONGEST:]
        none = operands and operands[-1].opname == "LOAD_CONST"  # `dtype is None`
        if step.opcode == _IS and not none and any(map(_loads_dtype, operands)):
            return True
        before.append(step)
    return False


_LONGEST = 5  # instructions that make both operands: `x.dtype is self.layer.dtype`


def _loads_dtype(step: dis.Instruction) -> bool:
    builtin = step.opname == "LOAD_GLOBAL" and step.argval in vars(builtins)  # `type(x) is float`
    return not builtin and _is_of_dtypes(step.argval)


def _is_of_dtypes(name: Any) -> bool:
    return isinstance(name, str) and (name in _DTYPES or "dtype" in name.lower())


def any_compares_dtypes(functions: Iterable[types.FunctionType]) -> bool:
    """Does any of some functions compare dtypes by `is`, or any that these name, and so on?"""
    queue, seen = list(functions), set[types.FunctionType]()
    while queue:
        function = queue.pop()
        if function in seen or not is_users(function.__code__.co_filename):
            continue
        seen.add(function)
        if any(map(compares_dtypes, codes_in(function.__code__))):
            return True
        queue += _named_in(function)
    return False


def _named_in(function: types.FunctionType) -> Iterator[types.FunctionType]:
    """Yield the functions that a function may call by a name, from a module that it names as well."""
    names = {name for code in codes_in(function.__code__) for name in code.co_names}
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
    """Yield a function, the methods of a class, or what is called partly."""
    if isinstance(value, functools.partial):
        value = value.func
    if isinstance(value, type):
        for member in vars(value).values():
            yield from plain_functions(member)
    elif isinstance(value, (types.FunctionType, types.MethodType)) or hasattr(value, "__wrapped__"):
        yield from plain_functions(value)
