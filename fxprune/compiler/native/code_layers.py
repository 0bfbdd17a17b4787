"""Find, in the source of users' classes, which weights are made of just one number: they say what it became.

`self.head = nn.Linear(self.dim, classes)`, beside `self.classes = classes`: however many channels there are,
what the head gives is as wide as there are classes.  `self.proj = nn.Parameter(torch.zeros(dim, out))` says
as much.
"""

from __future__ import annotations

import ast
import functools
import itertools
import weakref
from collections.abc import Iterator

from torch import nn

from fxprune.compiler.native.code_calls import Place, called_in
from fxprune.compiler.native.code_terms import CodeTerms, Term, terms_of
from fxprune.compiler.native.code_widths import bound_arguments, functions_of
from fxprune.rules.modules import Width, native_base

__all__ = ["counts_groups", "widths_built_of"]

# An attribute, or "" for any layer inside; and the argument of a layer, or the dimension of a parameter.
_Made = tuple[str, str | int]
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_COUNTS = {"groups", "num_groups"}  # that a layer holds, and that shrink with its channels
_STAY = {"kernel_size", "stride", "padding", "dilation"}  # what is one of these is no width, however large
_MAKERS = {"empty", "zeros", "ones", "full", "rand", "randn"}


def widths_built_of(model: nn.Module, instance: nn.Module, name: str, old: int) -> dict[int, bool]:
    """Map how large the weights of an instance are which its class makes of just the number `name`.

    With each: is it what a layer has that many groups of?
    """
    found: dict[int, bool] = {}
    for place, what in _built_of(type(model), name):
        layers = [place] if place else [path for path, _ in model.named_modules() if path]
        for layer in layers:
            new = _read(instance, layer, what) if _read(model, layer, what) == old else None
            if new is not None:
                found[new] = found.get(new, False) or what in _COUNTS
    return found


def counts_groups(cls: type, name: str) -> bool:
    """Does code give just a number of a class's own to what it calls as a number of groups?"""
    return any(what in _COUNTS for _, what in _built_of(cls, name))


def _read(module: nn.Module, name: str, what: str | int) -> int | None:
    if isinstance(what, int):
        weight = module._parameters.get(name)
        return None if weight is None or weight.ndim <= what else weight.shape[what]
    held: nn.Module | None = module
    for part in name.split("."):
        held = None if held is None else held._modules.get(part)
    widths = {} if held is None else _widths(type(held))
    if held is None or what in widths:
        return None if held is None else widths[what].read(held)
    number = vars(held).get(what) if widths else None
    if isinstance(number, tuple) and len({*number}) == 1:  # of each side
        number = number[0]
    return number if type(number) is int else None


def _widths(cls: type) -> dict[str, Width]:
    """Return what the arguments of a layer's class say of its weights."""
    native = native_base(cls)
    if native is None:
        return {}
    return {**native.widths, **({"normalized_shape": Width("weight")} if native.op.endswith("_norm") else {})}


# By class, which users may make one by one: none is kept alive.
_found: weakref.WeakKeyDictionary[type, dict[str, frozenset[_Made]]] = weakref.WeakKeyDictionary()


def _built_of(cls: type, name: str) -> frozenset[_Made]:
    """List the attributes that weights are assigned to, each with where they are as large as the number."""
    known = _found.setdefault(cls, {})
    if name not in known:
        known[name] = frozenset(
            found for place in functions_of(cls, name) for found in _built_in(place, name)
        )
    return known[name]


def _built_in(place: Place, name: str) -> Iterator[_Made]:
    terms = terms_of(place.function)
    same = {"." + name}
    for value, beside in terms.values_of(name):
        same |= beside | _exactly(value, terms)
    for keyword in (keyword for call in terms.calls for keyword in call.keywords):
        if keyword.arg in _COUNTS and _exactly(keyword.value, terms) & same:
            yield "", keyword.arg
    for attribute, (value, _) in terms.assignments():
        for layer, call in _calls(value, place, attribute):
            callee = called_in(call.func, place)
            cls = callee.func if isinstance(callee, functools.partial) else callee
            if cls is nn.Parameter:
                for sizes in _sizes(call):
                    yield from ((layer, i) for i, n in enumerate(sizes) if _exactly(n, terms) & same)
            elif isinstance(cls, type):
                for argument, given in bound_arguments(callee, call):
                    known = argument in _widths(cls) or argument in _COUNTS | _STAY
                    if known and _exactly(given, terms) & same:
                        yield layer, argument


def _calls(value: ast.expr, place: Place, at: str) -> Iterator[tuple[str, ast.Call]]:
    """List the calls that a value is, in either case of one, and those in containers, each with its path."""
    if isinstance(value, ast.IfExp):
        yield from _calls(value.body, place, at)
        yield from _calls(value.orelse, place, at)
    elif isinstance(value, ast.Call) and called_in(value.func, place) in _CONTAINERS:
        for name, item in _items(value):
            yield from _calls(item, place, f"{at}.{name}")
    elif isinstance(value, ast.Call):
        yield at, value


def _items(container: ast.Call) -> Iterator[tuple[str, ast.expr]]:
    """List what a call of a container is given, by the names that it has there."""
    first = container.args[0] if len(container.args) == 1 else None
    if isinstance(first, ast.Call):  # `dict(a=..)`, `OrderedDict([("a", ..)])`
        yield from ((word.arg, word.value) for word in first.keywords if word.arg is not None)
        first = first.args[0] if len(first.args) == 1 else first
    if isinstance(first, ast.Dict):
        for key, item in zip(first.keys, first.values, strict=True):
            if isinstance(key, ast.Constant):
                yield str(key.value), item
        return
    given = first.elts if isinstance(first, (ast.List, ast.Tuple)) else container.args
    for i, item in enumerate(itertools.takewhile(lambda item: not isinstance(item, ast.Starred), given)):
        named = isinstance(item, ast.Tuple) and len(item.elts) == 2 and isinstance(item.elts[0], ast.Constant)
        yield (str(item.elts[0].value), item.elts[1]) if named else (str(i), item)  # type: ignore[attr-defined]


def _sizes(call: ast.Call) -> Iterator[list[ast.expr]]:
    """List the sizes of the tensors that are made among a call's arguments."""
    for made in (node for given in call.args for node in ast.walk(given) if isinstance(node, ast.Call)):
        if isinstance(made.func, ast.Attribute) and made.func.attr in _MAKERS and made.args:
            first = made.args[0]
            yield first.elts if isinstance(first, (ast.Tuple, ast.List)) else made.args


def _exactly(value: ast.expr, terms: CodeTerms) -> set[Term]:
    """Return the term that a value is, of the function's own names those that it never assigns."""
    if isinstance(value, ast.Attribute):
        return {"." + value.attr}
    return {value.id} if isinstance(value, ast.Name) and not terms.is_assigned(value.id) else set()
