"""Keep torch's own logs off the terminal while fxprune runs code that may fail."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Iterator
from contextvars import ContextVar

__all__ = ["quiet_torch"]

# They print a stack trace before they raise an error, which whoever tries something catches.
TALKATIVE = ("torch._subclasses.fake_tensor", "torch.fx.experimental.symbolic_shapes")

_quiet: ContextVar[bool] = ContextVar("fxprune_quiet", default=False)


@contextlib.contextmanager
def quiet_torch() -> Iterator[None]:
    """Drop what fake tensors log on an error, in this thread: the error itself is raised all the same."""
    _install()
    token = _quiet.set(True)
    try:
        yield
    finally:
        _quiet.reset(token)


@functools.cache
def _install() -> None:
    """Install one filter for the process, which looks at the thread's flag: no level is ever changed."""
    for name in TALKATIVE:
        logging.getLogger(name).addFilter(lambda record: not _quiet.get())
