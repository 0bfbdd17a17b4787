"""Recognise code that keeps results for its next call."""

from __future__ import annotations

import functools
import sys

from torch import nn

__all__ = ["has_caches"]


def has_caches(model: nn.Module) -> bool:
    """Do the modules' files hold an `lru_cache`?  It would keep a fake tensor for whoever calls next."""
    files = {sys.modules.get(type(m).__module__) for m in model.modules()}
    files = {f for f in files if f is not None and not f.__name__.startswith("torch.")}
    return any(isinstance(v, functools._lru_cache_wrapper) for f in files for v in vars(f).values())
