"""Classes: torch's own, and those made of the user's."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from fxprune.graph.nests import Value

__all__ = ["is_torchs", "subclass_of"]


def is_torchs(module: nn.Module) -> bool:
    """Is a module's class one of torch's own, and none that inherits from it?"""
    return type(module).__module__.partition(".")[0] == "torch"


def subclass_of(cls: type, members: Mapping[str, object]) -> Value:
    """Make a class that inherits from another and goes by its name, with some members of its own."""
    own = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
    return type(cls.__name__, (cls,), {**own, **members})
