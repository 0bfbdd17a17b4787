"""The lock held while anything is changed that all threads of the process share."""

from __future__ import annotations

import threading
from collections.abc import Callable

__all__ = ["PROCESS_LOCK", "this_thread_only"]

# Tracing patches builtins, torch's functions and `nn.Module`; a certificate sets the default dtype and draws
# from the global generator.  One thread at a time, and what it changed is undone before it lets go.
PROCESS_LOCK = threading.RLock()


def this_thread_only() -> Callable[[], bool]:
    """Return a question that only the thread at hand answers with yes.

    A patch lies in every thread's way: in the others it must do what was there before.
    """
    own = threading.get_ident()
    return lambda: threading.get_ident() == own
