"""Find, in the source of users' classes, which numbers are widths: those that layers are built of."""

from __future__ import annotations

import ast
import builtins
import functools
import inspect
import itertools
import types
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from torch import nn

from fxprune.compiler.native.code_terms import CodeTerms, Term, is_counted, terms_of
from fxprune.graph.code_names import names_of, plain_functions
from fxprune.graph.nests import Value
from fxprune.result.own_code import Slot
from fxprune.rules.modules import NATIVE

__all__ = ["is_width_in_code"]

DEPTH = 6  # of functions and classes that hand a number on
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)


@dataclass
class _Given:
    """What layers are built of: terms that surely are widths, and those that may be.

    They are not frozen: they are found one by one.
    """

    surely: set[Term] = field(default_factory=set)
    perhaps: set[Term] = field(default_factory=set)

    def add(self, terms: Iterable[Term], *, sure: bool) -> None:
        (self.surely if sure else self.perhaps).update(terms)

    def says(self, terms: Iterable[Term]) -> str:
        found = {*terms}
        return "surely" if found & self.surely else "perhaps" if found & self.perhaps else ""


def is_width_in_code(slot: Slot, cls: type[nn.Module], classes: Iterable[type[nn.Module]]) -> bool | None:
    """Tell whether a number in a module's state is a width, by the source of its class.

    It is, if layers are built of it, or of what it is assigned from; it is none, if code has it for bounds,
    comparisons and counts alone.  None: the source does not tell.

    classes: those of the model, which may read what an object holds that several modules share.
    """
    words = [key for key in slot.keys[: slot.held] if isinstance(key, str)]
    if _is_torchs(cls) or _is_described(cls, words[0]):
        return True
    name, held = words[-1], slot.held > 1
    speaking: Iterable[Value] = classes if held else (cls,)
    functions = [*dict.fromkeys(f for c in speaking for f in _functions(c, name))]
    read = "." + name
    said = {_given(function, 0).says([read]) for function in functions}
    if "surely" in said:
        return True
    uses = [is_counted(use) for function in functions for use in terms_of(function).uses(name)]
    if uses and all(uses):  # though it comes from where a width does
        return False
    if not held:
        key = next((key for key in reversed(slot.keys[1:]) if isinstance(key, str)), None)
        attributes = {t for f in functions for t in _given(f, 0).surely if t.startswith(".")}
        for function in functions:
            for found in terms_of(function).assigned(name, key):
                said.add("surely" if found & attributes else _given(function, 0).says(found))
    return True if "surely" in said or ("perhaps" in said and not any(uses)) else None


def _is_torchs(cls: type) -> bool:
    return cls.__module__.partition(".")[0] in ("torch", "builtins")


def _is_described(cls: type[nn.Module], name: str) -> bool:
    """Is it what a layer says of its weights?"""
    known = [NATIVE[base].widths for base in cls.__mro__ if base in NATIVE]
    return any(name in widths or name == "normalized_shape" for widths in known)


@functools.lru_cache(1 << 12)
def _functions(cls: Value, name: str) -> tuple[types.FunctionType, ...]:
    """List the functions of a user's class that speak of an attribute."""
    bases = [base for base in cls.__mro__ if not _is_torchs(base)]
    functions = [f for base in bases for member in vars(base).values() for f in plain_functions(member)]
    return tuple(f for f in functions if name in names_of(f.__code__))


_found: dict[types.FunctionType, _Given] = {}


def _given(function: types.FunctionType, depth: int) -> _Given:
    """Find what a function builds layers of, or gives to what does."""
    if function in _found or depth > DEPTH:
        return _found.get(function, _Given())
    given = _found[function] = _Given()  # what calls itself tells nothing new
    terms = terms_of(function)
    for call in terms.calls:
        for sure, value in _widths(call, function, terms, depth):
            given.add(terms.followed(value), sure=sure)
    return given


def _widths(
    call: ast.Call, function: types.FunctionType, terms: CodeTerms, depth: int
) -> Iterator[tuple[bool, ast.expr]]:
    """List the arguments of a call that are widths, each with whether that is sure."""
    callee = _callee(call.func, function)
    every = [*call.args, *(keyword.value for keyword in call.keywords)]
    if callee is None:
        if isinstance(call.func, ast.Name) and call.func.id in terms.locals:  # a layer's class, handed over
            yield from ((False, value) for value in every)
    elif isinstance(callee, type) and _is_torchs(callee):
        if issubclass(callee, nn.Module) and callee not in _CONTAINERS:
            native = next((NATIVE[base] for base in callee.__mro__ if base in NATIVE), None)
            for name, value in _bound(callee, call):
                if native is None or name in native.widths or name == "normalized_shape":
                    yield native is not None, value
    elif isinstance(callee, (type, types.FunctionType)) and callee.__module__ not in ("torch", "builtins"):
        for name, value in _bound(callee, call):
            said = _takes_width(callee, name, depth + 1)
            if said:
                yield said == "surely", value


def _takes_width(callee: Value, name: str, depth: int) -> str:
    """Tell whether a parameter of a class or function is a width: "surely", "perhaps" or not ("")."""
    if not isinstance(callee, type):
        return _given(callee, depth).says([name])
    built = [f for f in plain_functions(callee.__init__)]  # type: ignore[misc]
    if not built:
        return ""
    said = {_given(built[0], depth).says([name])}
    for held in terms_of(built[0]).holders(name):
        said |= {_given(function, depth).says(["." + held]) for function in _functions(callee, held)}
    return "surely" if "surely" in said else "perhaps" if "perhaps" in said else ""


def _bound(callee: Value, call: ast.Call) -> Iterator[tuple[str, ast.expr]]:
    """Pair the arguments of a call with the names of the parameters that take them."""
    try:
        parameters = [*inspect.signature(callee).parameters.values()]
    except (TypeError, ValueError):
        return
    plain = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    positional = itertools.takewhile(lambda value: not isinstance(value, ast.Starred), call.args)
    yield from zip(plain, positional, strict=False)
    yield from ((keyword.arg, keyword.value) for keyword in call.keywords if keyword.arg is not None)


def _callee(node: ast.expr, function: types.FunctionType) -> Value:
    """Find the class or function that code calls: by its name, or as the default of a parameter."""
    if isinstance(node, ast.Name):
        code = function.__code__
        if node.id in code.co_varnames:
            parameter = inspect.signature(function).parameters.get(node.id)
            default = parameter.default if parameter is not None else None
            return (
                default
                if isinstance(default, (type, types.FunctionType)) and default is not inspect._empty
                else None
            )
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
        holder = _callee(node.value, function) if isinstance(node.value, (ast.Name, ast.Attribute)) else None
        return getattr(holder, node.attr, None) if isinstance(holder, types.ModuleType) else None
    return None


def _parent(function: types.FunctionType) -> Value:
    """Return the class that `super()` means in a method, by its first base."""
    if "__class__" not in function.__code__.co_freevars or not function.__closure__:
        return None
    cells = dict(zip(function.__code__.co_freevars, function.__closure__, strict=True))
    return cells["__class__"].cell_contents.__mro__[1]
