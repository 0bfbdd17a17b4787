"""Find the Python functions and module classes that a user taught rules for: captures keep their calls."""

from __future__ import annotations

import sys
from collections.abc import Collection
from types import FunctionType
from typing import Any

from torch import nn

from fxprune.rules.registry import DEFAULT_RULES

__all__ = ["is_taught", "taught_functions", "taught_notes"]


def is_taught(what: type | FunctionType, taught: Collection[str]) -> bool:
    """Was a rule taught under the full name of this function or class, or under the last part of it?"""
    space, name = what.__module__, what.__name__
    full = f"{space}.{what.__qualname__}" in taught or f"{space}.{name}" in taught
    return full or (name in taught and name not in DEFAULT_RULES)


def taught_functions(model: nn.Module, taught: Collection[str]) -> list[tuple[dict[str, Any], str, Any]]:
    """Return all places (a namespace and a name in it) that hold a Python function of a taught name.

    Looked for in all modules that are imported, and where the code of the model's own modules was defined.
    """
    if not taught:
        return []
    forwards = (getattr(type(m).forward, "__globals__", None) for m in model.modules())
    known = [vars(m) for m in list(sys.modules.values()) if isinstance(m, type(sys))]
    spaces = {id(s): s for s in (*known, *forwards) if s is not None}
    last = {name.rpartition(".")[2] for name in taught}
    return [
        (space, name, value)
        for space in spaces.values()
        for name, value in list(space.items())
        if type(value) is FunctionType and value.__name__ in last and is_taught(value, taught)
    ]


def taught_notes(model: nn.Module, taught: Collection[str]) -> list[str]:
    """List the rules that torch.export never asks, since it decomposes what they are for."""
    decomposed = {type(m).__name__ for m in model.modules() if is_taught(type(m), taught)}
    decomposed |= {value.__name__ for _, _, value in taught_functions(model, taught)}
    return [
        f"torch.export decomposes {name}: the rule that you taught for it is not asked (capture='symbolic' "
        f"or torch.library.custom_op keeps its calls)"
        for name in sorted(decomposed)
    ]
