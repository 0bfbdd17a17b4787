"""Sizes that code writes into texts: into messages, or into words that it goes by."""

from __future__ import annotations

import contextlib
import dis
import functools
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch

from fxprune.capture.patched import patch
from fxprune.graph.code_names import ends_statement, names_before, names_in, steps_of
from fxprune.graph.process_lock import this_thread_only
from fxprune.graph.source_files import is_users

__all__ = ["is_message", "numbers_in_texts"]

_MESSAGES = {
    *("_assert", "_check", "print", "warn", "warn_once", "warning", "warning_once", "warning_advice"),
    *("info", "info_once", "debug", "error", "exception", "logger"),
}
_RAISED = ("Error", "Exception", "Warning")


@functools.lru_cache(1 << 14)
def writes_messages(code: types.CodeType) -> bool:
    """Does code say something to people, so that a text it makes may be a message?"""
    return dis.opmap["RAISE_VARARGS"] in code.co_code[::2] or any(map(_says, names_in(code)))


def is_message(frame: types.FrameType) -> bool:
    """Is a text that is being made in a frame raised, or given to what says it to people?

    So is one that a local name holds for such statements alone.  A text that the code keeps, looks up or
    returns is none.
    """
    code = frame.f_code
    return writes_messages(code) and _says_at(code, frame.f_lasti)


@functools.lru_cache(1 << 12)
def _says_at(code: types.CodeType, at: int) -> bool:
    names = set(names_before(code, at))
    for _, step in steps_of(code):
        if step.offset > at and ends_statement(step):
            if step.opname == "STORE_FAST":
                return _says_all(code, step)
            return step.opname.startswith("RAISE") or (step.opname == "POP_TOP" and any(map(_says, names)))
        if step.offset > at and isinstance(step.argval, str) and step.opname != "LOAD_CONST":
            names.add(step.argval)
    return False


def _says_all(code: types.CodeType, stored: dis.Instruction) -> bool:
    """Is a local name stored once, and read in nothing but statements that say it?"""
    # (Newer versions of Python load two names at once.)
    both = ((step, step.argval) for _, step in steps_of(code))
    steps = [step for step, said in both if stored.argval in (said if isinstance(said, tuple) else (said,))]
    read = [step.offset for step in steps if step.opname.startswith("LOAD_FAST")]
    once = len(steps) == len(read) + 1 and all(at > stored.offset for at in read)
    return once and all(_says_at(code, at) for at in read)


def _says(name: str) -> bool:
    return name in _MESSAGES or name.endswith(_RAISED)


@contextlib.contextmanager
def numbers_in_texts() -> Iterator[None]:
    """Let torch.export write a size into a text as its number, which it then holds for.

    It writes a name of its own (`s53`) otherwise, which no text of the model's is.
    """
    here = this_thread_only()

    def said(caller: types.FrameType) -> bool:
        return here() and is_users(caller.f_code.co_filename) and not is_message(caller)

    def number(x: Any) -> Any:
        return int(x) if isinstance(x, torch.SymInt) else float(x)

    def written(of: Callable[[Any], str]) -> Callable[[Any], str]:
        return lambda x: repr(number(x)) if said(sys._getframe(1)) else of(x)

    def formatted(of: Callable[[Any, str], str]) -> Callable[[Any, str], str]:
        return lambda x, spec: format(number(x), spec) if said(sys._getframe(1)) else of(x, spec)

    with contextlib.ExitStack() as patches:
        for kind in (torch.SymInt, torch.SymFloat):
            patch(patches, kind, "__str__", written(kind.__str__))
            patch(patches, kind, "__format__", formatted(kind.__format__))
            patch(patches, kind, "__repr__", written(kind.__repr__))
        yield
