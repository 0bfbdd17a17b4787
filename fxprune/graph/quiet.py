"""Keep what torch logs and prints off the terminal while fxprune runs code that may fail."""

from __future__ import annotations

import builtins
import contextlib
import functools
import logging
import warnings
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

from torch.fx import graph_module

from fxprune.graph.process_lock import PROCESS_LOCK

__all__ = ["quiet_libraries", "quiet_torch"]

# They print a stack trace before they raise an error, which whoever tries something catches.
TALKATIVE = ("torch._subclasses.fake_tensor", "torch.fx.experimental.symbolic_shapes")

_quiet: ContextVar[bool] = ContextVar("fxprune_quiet", default=False)
_inside: ContextVar[bool] = ContextVar("fxprune_quiet_libraries", default=False)


@contextlib.contextmanager
def quiet_torch() -> Iterator[None]:
    """Drop what fake tensors log and graphs print on an error, in this thread: the error itself is raised."""
    _install()
    token = _quiet.set(True)
    try:
        yield
    finally:
        _quiet.reset(token)


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Drop what libraries log and warn of while fxprune runs a model's code: its own calls say it as well.

    Filters of warnings are the process's, so one thread at a time may be in here.
    """
    if _inside.get():  # it costs a look at all loggers
        yield
        return
    with PROCESS_LOCK, quiet_torch(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in list(logging.root.manager.loggerDict.values()):
            for handler in getattr(logger, "handlers", ()):  # of libraries that print by themselves
                if _by_users not in handler.filters:
                    handler.addFilter(_by_users)
        token = _inside.set(True)
        try:
            yield
        finally:
            _inside.reset(token)


def _by_users(record: logging.LogRecord) -> bool:
    """Is it said at another time, or an error, or by other code than an installed library's?"""
    return not _quiet.get() or record.levelno > logging.WARNING or "-packages" not in record.pathname


@functools.cache
def _install() -> None:
    """Install one filter for the process, which looks at the thread's flag: no level is ever changed."""
    for name in TALKATIVE:
        logging.getLogger(name).addFilter(lambda record: not _quiet.get())
    vars(graph_module)["print"] = _print_aloud  # the file's own: all others print as ever


def _print_aloud(*values: Any, **options: Any) -> None:
    """Print, unless it is the traceback of a graph that was only tried."""
    if not _quiet.get():
        builtins.print(*values, **options)
