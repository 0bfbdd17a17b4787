"""Classes made of the user's own."""

from __future__ import annotations

from collections.abc import Mapping

from fxprune.graph.nests import Value

__all__ = ["subclass_of"]


def subclass_of(cls: type, members: Mapping[str, object]) -> Value:
    """Make a class that inherits from another and goes by its name, with some members of its own."""
    own = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
    return type(cls.__name__, (cls,), {**own, **members})
