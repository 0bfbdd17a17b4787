"""Attributes of classes and modules that are others while a capture looks."""

from __future__ import annotations

import contextlib
from typing import Any

__all__ = ["patch"]


def patch(patches: contextlib.ExitStack, owner: Any, name: str, value: Any) -> None:
    """Set an attribute of a class or a module until a stack closes.

    What stood there itself, as a library's own patch, stands there again; what it inherits, it inherits.
    """
    own = vars(owner)
    patches.callback(*((setattr, owner, name, own[name]) if name in own else (delattr, owner, name)))
    setattr(owner, name, value)
