"""Name what a node calls."""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["op_name"]


def op_name(target: Any) -> str:
    """The bare name of a function, method or ATen overload."""
    if isinstance(target, str):
        return target
    if isinstance(target, torch._ops.OpOverload):
        return target._schema.name.split("::")[-1]
    return getattr(target, "__name__", str(target))
