"""Objects that a model's code makes to hold what it computes (a cache of keys and values), as a node."""

from __future__ import annotations

from typing import Any

from torch import fx

from fxprune.graph.own_nodes import class_named, name_of_class, object_of
from fxprune.graph.tensors import holds_attributes

__all__ = ["holds_traced", "object_node"]


def holds_traced(value: Any) -> bool:
    """Return whether an object holds traced values, however deep."""
    if isinstance(value, (fx.Proxy, fx.Node)):
        return True
    if isinstance(value, (list, tuple)):
        return any(map(holds_traced, value))
    if isinstance(value, dict):
        return any(map(holds_traced, value.values()))
    return holds_attributes(value) and any(map(holds_traced, vars(value).values()))


def object_node(tracer: fx.Tracer, value: Any) -> fx.Node:
    """Return a call that makes such an object anew, from its class's name and its attributes."""

    def argument(value: Any) -> Any:
        if isinstance(value, list):
            return [argument(v) for v in value]
        if isinstance(value, type):
            return tracer.create_node("call_function", class_named, (name_of_class(value),), {})
        if holds_attributes(value) and not isinstance(value, (fx.Proxy, fx.Node)):
            return object_node(tracer, value)
        return tracer.create_arg(value)

    held = {name: argument(v) for name, v in vars(value).items()}
    return tracer.create_node("call_function", object_of, (name_of_class(type(value)), held), {})
