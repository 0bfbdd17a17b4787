"""Name what a node calls."""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["op_name", "op_space"]


def op_name(target: Any) -> str:
    """Return the bare name of a function, method or registered operator."""
    if isinstance(target, str):
        return target
    if isinstance(target, torch._ops.OpOverload):
        return target._schema.name.split("::")[-1]
    if isinstance(target, torch._ops.OpOverloadPacket):
        return target._qualified_op_name.split("::")[-1]
    return getattr(target, "__name__", str(target))


def op_space(target: torch._ops.OpOverload | torch._ops.OpOverloadPacket) -> str:
    """Return the library of a registered operator: `aten`, `torchvision`, a user's own."""
    full = target._schema.name if isinstance(target, torch._ops.OpOverload) else target._qualified_op_name
    return full.split("::")[0]
