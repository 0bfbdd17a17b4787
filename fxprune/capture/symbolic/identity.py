"""Find code that compares dtypes by `is`: to that a stand-in for one has no answer.

Which code runs is known by its names.  Where a dtype is read and nothing comes of it in the graph, code
that no name leads to (`TABLE[kind](x, x.dtype)`) may have compared it: that of the same files counts there.
"""

from __future__ import annotations

import builtins
import dis
import functools
import types
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from fxprune.graph.code_names import attribute_of, codes_in, plain_functions

__all__ = ["any_compares_dtypes", "compares_dtypes", "compares_nearby"]

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
    """Does any of some functions compare dtypes by `is`?"""
    return any(compares_dtypes(code) for function in functions for code in codes_in(function.__code__))


def compares_nearby(functions: Iterable[types.FunctionType]) -> bool:
    """Does any function compare dtypes by `is` that stands in a file of some functions?"""
    spaces = {id(f.__globals__): f.__globals__ for f in functions}
    return any(any_compares_dtypes(_standing_in(space)) for space in spaces.values())


def _standing_in(space: dict[str, Any]) -> Iterator[types.FunctionType]:
    """Yield the functions of a file, and the methods of its classes."""
    for value in [*space.values()]:
        if attribute_of(value, "__module__") == space.get("__name__"):
            for member in (value, *vars(value).values()) if isinstance(value, type) else (value,):
                yield from plain_functions(member)
