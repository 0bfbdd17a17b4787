"""Let a module refuse methods and properties that read numbers which nobody can tell from widths."""

from __future__ import annotations

import copyreg
import functools
import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import nn

from fxprune.errors import UnsupportedModuleError
from fxprune.graph.nests import Value

__all__ = ["call_instead", "refuse_doubtful"]

_Call = Callable[..., Any]


def refuse_doubtful(method: str, numbers: str, *args: Value, **kwargs: Value) -> None:
    """Raise UnsupportedModuleError: the method reads a number that may be a width that shrank, or none."""
    raise UnsupportedModuleError(
        f"{method} reads {numbers}, as large as a width that shrank, and nothing in the code says whether it "
        "is one: build a layer of it in the class's __init__, or call the original's method"
    )


def call_instead(module: nn.Module, calls: Mapping[str, _Call]) -> None:
    """Let a module's methods and properties be others, by their names.

    What a property gives is its class's to say: the module gets a class of its own, of the same name.
    """
    cls = type(module)
    properties = {name: call for name, call in calls.items() if _is_property(cls, name)}
    vars(module).update({name: call for name, call in calls.items() if name not in properties})
    if properties:
        module.__class__ = _with_properties(cls, properties)


def _is_property(cls: type, name: str) -> bool:
    return isinstance(inspect.getattr_static(cls, name), (property, functools.cached_property))


def _with_properties(cls: type[nn.Module], properties: Mapping[str, _Call]) -> type[nn.Module]:
    """Make a class whose properties are others, and whose instances are copied and pickled as ever."""

    def reduced(self: nn.Module, protocol: int) -> Value:
        told = cls.__reduce_ex__(self, protocol)
        is_plain = told[0] is copyreg.__newobj__ and told[1] == (type(self),)  # type: ignore[attr-defined]
        return (_made, (cls, properties), *told[2:]) if is_plain else told

    said = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
    getters = {name: property(partial(_called, call)) for name, call in properties.items()}
    return type(cls.__name__, (cls,), {**said, **getters, "__reduce_ex__": reduced})


def _called(call: _Call, module: nn.Module) -> Value:
    return call()


def _made(cls: type[nn.Module], properties: Mapping[str, _Call]) -> nn.Module:
    made = cls.__new__(cls)
    made.__class__ = _with_properties(cls, properties)
    return made
