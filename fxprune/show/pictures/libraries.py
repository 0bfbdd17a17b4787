"""The libraries that pictures need; they are not among those that pruning needs."""

from __future__ import annotations

import importlib
from typing import Any

from fxprune.errors import DrawError

__all__ = ["drawing_library"]


def drawing_library(name: str) -> Any:
    """Import a package of the extra `[draw]`.  Raises DrawError, naming the extra, where it is missing."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise DrawError(
            f"this picture needs the package {package}, which is not installed: pip install 'fxprune[draw]'"
        ) from error
