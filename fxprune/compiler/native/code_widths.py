"""Find, in the source of users' classes, which numbers are widths: those that layers are built of."""

from __future__ import annotations

import ast
import functools
import inspect
import itertools
import sys
import types
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from torch import Tensor, nn

from fxprune.compiler.native.code_calls import Place, called_in, is_self
from fxprune.compiler.native.code_terms import CodeTerms, Term, Use, is_counted, is_size, terms_of
from fxprune.graph.code_names import attribute_of, names_of, plain_functions
from fxprune.graph.nests import Value
from fxprune.result.own_code import Slot
from fxprune.rules.modules import NATIVE, native_base

__all__ = ["bound_arguments", "functions_of", "is_only_a_size", "is_width_in_code", "kind_in_code"]

_WORDS = ("alone", "surely", "perhaps", "others")
_SURE = {"alone", "surely"}
DEPTH = 6  # of functions and classes that hand a number on
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)
_METHODS = {*dir(dict), *dir(list), *dir(set), *dir(str), *dir(Tensor)}  # that build no layers


@dataclass
class _Given:
    """What layers are built of: terms that surely are in widths, and those that may be.

    They are not frozen: they are found one by one.

    alone: those that are widths themselves, or of which widths are multiples.
    others: those that are something else of a layer (a stride, a number of groups).
    """

    surely: set[Term] = field(default_factory=set)
    perhaps: set[Term] = field(default_factory=set)
    alone: set[Term] = field(default_factory=set)
    others: set[Term] = field(default_factory=set)

    def add(self, value: ast.expr, terms: CodeTerms, says: str) -> None:
        if says in ("alone", "others"):
            (self.alone if says == "alone" else self.others).update(terms.followed(value, alone=True))
        if says != "others":
            (self.perhaps if says == "perhaps" else self.surely).update(terms.followed(value))

    def says(self, terms: Iterable[Term]) -> str:
        """Return the first of "alone", "surely", "perhaps" and "others" that is said of some terms."""
        found = {*terms}
        return next((word for word in _WORDS if found & getattr(self, word)), "")


def is_width_in_code(slot: Slot, cls: type[nn.Module], classes: Iterable[type[nn.Module]]) -> bool | None:
    """Tell whether a number in a module's state is a width, by the source of its class.

    It is, if layers are built, or may be, of it or of what it is assigned from; it is none, if code has it
    for bounds, comparisons and counts alone.  None: the source does not tell.

    classes: those of the model, which may read what an object holds that several modules share.
    """
    words = [key for key in slot.keys[: slot.held] if isinstance(key, str)]
    if _is_torchs(cls) or _is_described(cls, words[0]):
        return True
    name, held = words[-1], slot.held > 1
    places = _speaking(slot, cls, classes)
    said = {_given(place).says(["." + name]) for place in places}
    if said & _SURE:
        return True
    uses = [is_counted(use) for use in _uses(slot, cls, classes)]
    if uses and all(uses):  # though it comes from where a width does
        return False
    if not held:
        attributes = {t for place in places for t in _given(place).surely if t.startswith(".")}
        for place in places:
            for found in terms_of(place.function).assigned(name, _key(slot)):
                said.add("surely" if found & attributes else _given(place).says(found))
    return True if said & _SURE or ("perhaps" in said and not any(uses)) else None


def kind_in_code(slot: Slot, cls: type[nn.Module], classes: Iterable[type[nn.Module]]) -> str:
    """Tell what a number in a module's state is, where layers get just that, or a multiple.

    A width ("alone"), or something else ("others"): a stride, groups, what code divides by or counts to.
    """
    name = _name(slot)
    said, places = set[str](), _speaking(slot, cls, classes)
    attributes = {t for place in places for t in _given(place).alone if t.startswith(".")}
    for place in places:
        terms, found = terms_of(place.function), {"." + name}
        for more in terms.assigned(name, _key(slot), alone=True) if slot.held < 2 else ():
            found |= more
        said.add("alone" if found & attributes else _given(place).says(found))
        said.add("others" if found & terms.counts else "")
    return "alone" if "alone" in said else "others" if "others" in said else ""


def _speaking(slot: Slot, cls: type[nn.Module], classes: Iterable[type[nn.Module]]) -> list[Place]:
    name = _name(slot)
    return [
        *dict.fromkeys(place for c in (classes if slot.held > 1 else (cls,)) for place in _places(c, name))
    ]


def _name(slot: Slot) -> str:
    """Return the attribute, of the module or of the innermost object, that a number lies in."""
    return next(key for key in reversed(slot.keys[: slot.held]) if isinstance(key, str))


def _key(slot: Slot) -> str | None:
    return next((key for key in reversed(slot.keys[1:]) if isinstance(key, str)), None)


def is_only_a_size(slot: Slot, cls: type[nn.Module], classes: Iterable[type[nn.Module]]) -> bool:
    """Does code but hand back a number that no layer is built of, and make things so large?"""
    uses = _uses(slot, cls, classes)
    return all(map(is_size, uses)) and bool(uses or slot.held < 2)


def _uses(slot: Slot, cls: type[nn.Module], classes: Iterable[type[nn.Module]]) -> list[Use]:
    """List where code reads a number: its class's, or where that does not, others' that hold such modules."""
    name = _name(slot)
    if slot.held < 2 and (own := [use for place in _places(cls, name) for use in _uses_in(place, name)]):
        return own
    uses = [use for c in classes for place in _places(c, name) for use in _uses_in(place, name)]
    of_self = (isinstance(use[0], ast.Attribute) and isinstance(use[0].value, ast.Name) for use in uses)
    return [use for use, own_one in zip(uses, of_self, strict=True) if slot.held > 1 or not own_one]


def _uses_in(place: Place, name: str) -> list[Use]:
    return terms_of(place.function).uses(name)


def _is_torchs(cls: type) -> bool:
    return cls.__module__.partition(".")[0] in ("torch", "builtins")


def _is_described(cls: type[nn.Module], name: str) -> bool:
    """Is it what a layer says of its weights?"""
    known = [NATIVE[base].widths for base in cls.__mro__ if base in NATIVE]
    return any(name in widths or name == "normalized_shape" for widths in known)


def _places(cls: type, name: str, *, builds: bool = True) -> Iterator[Place]:
    """List the functions of a user's class that speak of an attribute."""
    for place in functions_of(cls, name):
        yield replace(place, builds=builds and place.function.__name__ == "__init__")


def functions_of(cls: type, name: str) -> Iterator[Place]:
    """List the functions of a user's class that refer to a name."""
    bases = [base for base in cls.__mro__ if not _is_torchs(base)]
    for function in (f for base in bases for member in vars(base).values() for f in plain_functions(member)):
        if name in names_of(function.__code__):
            yield Place(function, cls, 0)


# What was found, by function, class and the rest of the place: each depends on those alone, not on what was
# asked before.  Neither functions nor classes are kept alive: users may make them one by one.
_Known = weakref.WeakKeyDictionary[type, dict[tuple[int, bool], _Given]]
_found: weakref.WeakKeyDictionary[types.FunctionType, _Known] = weakref.WeakKeyDictionary()


def _given(place: Place) -> _Given:
    """Find what a function builds layers of, or gives to what does."""
    if place.depth > DEPTH:
        return _Given()
    known = _found.setdefault(place.function, weakref.WeakKeyDictionary()).setdefault(place.owner, {})
    key = place.depth, place.builds
    if key not in known:
        given, terms = _Given(), terms_of(place.function)
        for call in terms.calls:
            for says, value in _widths(call, place, terms):
                given.add(value, terms, says)
        known[key] = given
    return known[key]


def _widths(call: ast.Call, place: Place, terms: CodeTerms) -> Iterator[tuple[str, ast.expr]]:
    """List the arguments of a call that layers are built of, each with what says so of it."""
    every = [*call.args, *(keyword.value for keyword in call.keywords)]
    if not any(map(terms.followed, every)):
        return
    callee = called_in(call.func, place)
    plain = callee.func if isinstance(callee, functools.partial) else callee
    if isinstance(plain, type) and _is_torchs(plain):
        if issubclass(plain, nn.Module) and plain not in _CONTAINERS:
            native = native_base(plain)
            for name, value in bound_arguments(callee, call):
                is_width = native is None or name in native.widths or name == "normalized_shape"
                yield "others" if not is_width else "perhaps" if native is None else "alone", value
    elif _is_readable(plain):
        for name, value in bound_arguments(callee, call):
            said = _takes_width(plain, name, place) if terms.followed(value) else ""
            if said:
                yield said, value
    elif _may_build(plain, call.func, place, terms):
        yield from (("perhaps", value) for value in every)


def _is_readable(callee: Value) -> bool:
    """Is it a user's class or function, whose source can be followed?"""
    if not isinstance(callee, (type, types.FunctionType, types.MethodType)) or _is_librarys(callee):
        return False
    runs = attribute_of(callee, "__init__") if isinstance(callee, type) else callee
    functions = [*plain_functions(runs)]
    return bool(functions) and terms_of(functions[0]).is_read


def _may_build(callee: Value, node: ast.expr, place: Place, terms: CodeTerms) -> bool:
    """May what is called, and can't be followed, build layers of what it gets?"""
    if callee is not None:
        return place.builds and not _is_librarys(callee)
    if isinstance(node, ast.Name) and node.id in terms.locals:  # a layer's class, handed over
        return True
    of_value = isinstance(node, ast.Attribute) and node.attr in _METHODS and not is_self(node.value, place)
    return place.builds and not of_value


def _is_librarys(callee: Value) -> bool:
    """Is it of Python, torch or numpy, and calls nothing that it gets?"""
    at = getattr(callee, "__module__", None)
    base = str(at if isinstance(at, str) else type(callee).__module__).partition(".")[0]
    return base in ("torch", "numpy") or (base in sys.stdlib_module_names and base != "functools")


def _takes_width(callee: Value, name: str, place: Place) -> str:
    """Tell what a parameter of a class or function is to layers, in one of the words, or nothing ("")."""
    depth = place.depth + 1
    if not isinstance(callee, type):
        owner = place.owner if isinstance(callee, types.MethodType) else object
        function = next(plain_functions(callee))
        return _given(Place(function, owner, depth, place.builds)).says([name])
    built = next(plain_functions(callee.__init__))  # type: ignore[misc]
    said = {_given(Place(built, callee, depth, place.builds)).says([name])}
    for held in terms_of(built).holders(name):
        for other in _places(callee, held, builds=place.builds):
            said.add(_given(replace(other, depth=depth)).says(["." + held]))
    return next((word for word in _WORDS if word in said), "")


def bound_arguments(callee: Value, call: ast.Call) -> Iterator[tuple[str, ast.expr]]:
    """Pair the arguments of a call with the names of the parameters that take them."""
    try:
        parameters = [*inspect.signature(callee).parameters.values()]
    except (TypeError, ValueError):
        return
    plain = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    others = {p.kind: p.name for p in parameters if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    positional = [*itertools.takewhile(lambda value: not isinstance(value, ast.Starred), call.args)]
    yield from zip(plain, positional, strict=False)
    rest = others.get(inspect.Parameter.VAR_POSITIONAL)
    yield from ((rest, value) for value in positional[len(plain) :] if rest is not None)
    named = {p.name for p in parameters} - {*others.values()}
    for keyword in call.keywords:
        name = keyword.arg if keyword.arg in named else others.get(inspect.Parameter.VAR_KEYWORD)
        if keyword.arg is not None and name is not None:
            yield name, keyword.value
