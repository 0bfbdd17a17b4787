"""Find the functions behind a class's member, the names that their code refers to, and its instructions."""

from __future__ import annotations

import dis
import functools
import inspect
import types
from collections.abc import Iterator
from typing import Any

__all__ = [
    "assigned_in",
    "attribute_of",
    "codes_in",
    "ends_statement",
    "names_before",
    "names_in",
    "names_of",
    "plain_functions",
    "statement_before",
    "steps_of",
]


def attribute_of(value: Any, name: str) -> Any:
    """Read an attribute; None where there is none, or asking raises, as of a stub for a missing library."""
    try:
        return getattr(value, name, None)
    except Exception:  # whatever the stub raises
        return None


def plain_functions(member: Any) -> Iterator[types.FunctionType]:
    """Yield the functions behind a method, a property or a decorated one of these."""
    member = member.fget if isinstance(member, property) else attribute_of(member, "__func__") or member
    plain = inspect.unwrap(member) if callable(member) else member
    if isinstance(plain, types.FunctionType):
        yield plain


def names_in(code: types.CodeType) -> Iterator[str]:
    """Return what the code refers to, comprehensions and closures included."""
    return (name for inner in codes_in(code) for name in inner.co_names)


@functools.lru_cache(1 << 14)
def names_of(code: types.CodeType) -> frozenset[str]:
    """Return the same as a set, which is kept for each code."""
    return frozenset(names_in(code))


def codes_in(code: types.CodeType) -> Iterator[types.CodeType]:
    """Yield the code, and that of what is defined in it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from codes_in(constant)


@functools.lru_cache(1 << 12)
def names_before(code: types.CodeType, at: int) -> frozenset[str]:
    """Return what the statement refers to that an instruction stands in, up to there."""
    steps = statement_before(code, at)
    return frozenset(s.argval for s in steps if isinstance(s.argval, str) and s.opname != "LOAD_CONST")


def statement_before(code: types.CodeType, at: int) -> list[dis.Instruction]:
    """Return the instructions of the statement that one stands in, up to there."""
    statement: list[dis.Instruction] = []
    for _, step in steps_of(code):
        if step.offset > at:
            break
        statement = [] if ends_statement(step) else [*statement, step]
    return statement


# What ends a statement, or goes on elsewhere.
_ENDS = ("RAISE", "POP_TOP", "STORE_", "RETURN", "YIELD", "POP_JUMP", "JUMP")


def ends_statement(step: dis.Instruction) -> bool:
    """Does an instruction end a statement, or go on elsewhere?"""
    return step.opname.startswith(_ENDS) and "LOAD" not in step.opname


def assigned_in(function: types.FunctionType) -> frozenset[str]:
    """Return the names of attributes that a function assigns."""
    steps = (step for code in codes_in(function.__code__) for _, step in steps_of(code))
    return frozenset(step.argval for step in steps if step.opname == "STORE_ATTR")


def steps_of(code: types.CodeType) -> Iterator[tuple[int, dis.Instruction]]:
    """Yield the instructions of a code alone, each with its line."""
    line = code.co_firstlineno
    for step in dis.get_instructions(code):
        line = int(getattr(step, "line_number", step.starts_line) or line)  # before 3.13 it was `starts_line`
        yield line, step
