"""What a call prints that it should not: on both streams of the process, and as warnings."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["Said", "listening"]

# What Python itself shows nobody but a module's author.
HIDDEN = (DeprecationWarning, PendingDeprecationWarning, ImportWarning)


@dataclass
class Said:
    """The lines that were printed or warned of; not frozen, since they are known when the block is over."""

    lines: tuple[str, ...] = ()


@contextlib.contextmanager
def listening() -> Iterator[Said]:
    """Catch the block's output (native code's and loggers' too) and its warnings."""
    said = Said()
    sys.stdout.flush()
    sys.stderr.flush()
    with tempfile.TemporaryFile() as file, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        kept = [os.dup(stream) for stream in (1, 2)]
        try:
            for stream in (1, 2):
                os.dup2(file.fileno(), stream)
            # Python's own streams need not be the process's: a test runner has others.
            with (
                os.fdopen(os.dup(file.fileno()), "w", buffering=1) as text,
                contextlib.redirect_stdout(text),
                contextlib.redirect_stderr(text),
            ):
                yield said
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for copied, stream in zip(kept, (1, 2), strict=True):
                os.dup2(copied, stream)
                os.close(copied)
            file.seek(0)
            printed = file.read().decode(errors="replace").splitlines()
            warned = [str(w.message).splitlines()[0] for w in caught if not issubclass(w.category, HIDDEN)]
            said.lines = tuple(line.strip() for line in (*printed, *warned) if line.strip())
