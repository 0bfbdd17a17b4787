"""Sizes that code writes into texts: into messages, or into words that it goes by."""

from __future__ import annotations

import contextlib
import functools
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch

from fxprune.graph.code_names import names_in
from fxprune.graph.process_lock import this_thread_only
from fxprune.graph.source_files import is_users

__all__ = ["numbers_in_texts", "writes_messages"]

_MESSAGES = {
    *("_assert", "_check", "print", "warn", "warn_once", "warning", "warning_once", "warning_advice"),
    *("info", "info_once", "debug", "error", "exception", "logger"),
}
_RAISED = ("Error", "Exception", "Warning")


@functools.lru_cache(1 << 14)
def writes_messages(code: types.CodeType) -> bool:
    """Does code say something to people, so that a text it makes may be a message?"""
    return any(name in _MESSAGES or name.endswith(_RAISED) for name in names_in(code))


@contextlib.contextmanager
def numbers_in_texts() -> Iterator[None]:
    """Let torch.export write a size into a text as its number, which it then holds for.

    It writes a name of its own (`s53`) otherwise, which no text of the model's is.
    """
    here = this_thread_only()

    def said(caller: types.FrameType) -> bool:
        code = caller.f_code
        return here() and is_users(code.co_filename) and not writes_messages(code)

    def number(x: Any) -> Any:
        return int(x) if isinstance(x, torch.SymInt) else float(x)

    def written(of: Callable[[Any], str]) -> Callable[[Any], str]:
        return lambda x: repr(number(x)) if said(sys._getframe(1)) else of(x)

    def formatted(of: Callable[[Any, str], str]) -> Callable[[Any, str], str]:
        return lambda x, spec: format(number(x), spec) if said(sys._getframe(1)) else of(x, spec)

    with contextlib.ExitStack() as patches:
        for kind in (torch.SymInt, torch.SymFloat):
            patches.callback(setattr, kind, "__repr__", kind.__repr__)
            patches.callback(delattr, kind, "__str__")
            patches.callback(delattr, kind, "__format__")
            kind.__str__, kind.__format__ = written(kind.__str__), formatted(kind.__format__)  # type: ignore[method-assign]
            kind.__repr__ = written(kind.__repr__)  # type: ignore[method-assign]
        yield
