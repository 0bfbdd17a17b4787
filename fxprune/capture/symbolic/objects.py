"""Objects that a model's code makes to hold what it computes (a cache of keys and values), as a node."""

from __future__ import annotations

import dataclasses
import sys
from collections import OrderedDict
from typing import Any

from torch import fx

from fxprune.graph.own_nodes import class_named, name_of_class, object_of
from fxprune.graph.source_files import is_users
from fxprune.graph.tensors import holds_attributes

__all__ = ["holds_traced", "is_made_of_items", "object_node"]


def holds_traced(value: Any) -> bool:
    """Return whether an object holds traced values, however deep."""
    if isinstance(value, (fx.Proxy, fx.Node)):
        return True
    if isinstance(value, (list, tuple)):
        return any(map(holds_traced, value))
    if isinstance(value, dict):
        return any(map(holds_traced, value.values()))
    return holds_attributes(value) and any(map(holds_traced, vars(value).values()))


def is_made_of_items(value: Any) -> bool:
    """Return whether a value is a dict or a list of another class, which its items alone make anew."""
    cls = type(value)
    if cls is OrderedDict:
        return True
    if cls in (dict, list) or not isinstance(value, (dict, list)) or dataclasses.is_dataclass(cls):
        return False
    base = dict if isinstance(value, dict) else list
    plain = cls.__init__ in (base.__init__, OrderedDict.__init__) and cls.__new__ is base.__new__
    file = getattr(sys.modules.get(cls.__module__), "__file__", None) or "<stdin>"
    return plain and not getattr(value, "__dict__", None) and is_users(file)


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
