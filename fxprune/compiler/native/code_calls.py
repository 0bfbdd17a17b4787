"""Find what calls in the source of users' classes call: classes and functions, as far as source tells."""

from __future__ import annotations

import ast
import builtins
import inspect
import types
from dataclasses import dataclass

from fxprune.graph.code_names import attribute_of, plain_functions
from fxprune.graph.nests import Value

__all__ = ["Place", "called_in", "is_self"]


@dataclass(frozen=True)
class Place:
    """A function whose calls are looked at.

    owner: the class whose method it is, or `object`.
    depth: how many functions and classes handed numbers on to it.
    builds: it runs when a module is built: what it calls unseen may build layers.
    """

    function: types.FunctionType
    owner: type = object
    depth: int = 0
    builds: bool = False


def called_in(node: ast.expr, place: Place) -> Value:
    """Find the class or function that code calls: by its name, of its class, or as a parameter's default."""
    function = place.function
    if isinstance(node, ast.Name):
        code = function.__code__
        if node.id in code.co_varnames:
            parameter = inspect.signature(function).parameters.get(node.id)
            default = parameter.default if parameter is not None else None
            is_told = isinstance(default, (type, types.FunctionType)) and default is not inspect._empty
            return default if is_told else None
        if node.id in code.co_freevars:
            cells = dict(zip(code.co_freevars, function.__closure__ or (), strict=True))
            try:
                return cells[node.id].cell_contents
            except ValueError:
                return None
        return function.__globals__.get(node.id, getattr(builtins, node.id, None))
    if isinstance(node, ast.Attribute):
        if node.attr == "__init__" and isinstance(node.value, ast.Call):
            return _parent(function)
        if is_self(node.value, place):
            return _member(place.owner, node.attr)
        holder = called_in(node.value, place) if isinstance(node.value, (ast.Name, ast.Attribute)) else None
        if isinstance(holder, (types.ModuleType, type)):
            return attribute_of(holder, node.attr)
        return None if holder is None else attribute_of(type(holder), node.attr)
    return None


def is_self(node: ast.expr, place: Place) -> bool:
    """Is it the first parameter of a method?"""
    code = place.function.__code__
    names = code.co_varnames[: code.co_argcount][:1]
    return place.owner is not object and isinstance(node, ast.Name) and node.id in names


def _member(owner: type, name: str) -> Value:
    """Return what a class has under a name, as its instance calls it."""
    member = inspect.getattr_static(owner, name, None)
    if isinstance(member, staticmethod):
        return member.__func__
    functions = [] if isinstance(member, (type, property)) else [*plain_functions(member)]
    if functions:
        return types.MethodType(functions[0], owner)
    return None if isinstance(member, property) else member


def _parent(function: types.FunctionType) -> Value:
    """Return the class that `super()` means in a method, by its first base."""
    if "__class__" not in function.__code__.co_freevars or not function.__closure__:
        return None
    cells = dict(zip(function.__code__.co_freevars, function.__closure__, strict=True))
    return cells["__class__"].cell_contents.__mro__[1]
