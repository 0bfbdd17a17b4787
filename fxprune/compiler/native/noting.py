"""Run a model while the code of some of its modules tells its numbers, and its calls of functions."""

from __future__ import annotations

import ast
import types
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxprune.certify.comparison import same_draws
from fxprune.certify.float64 import in_double, in_eval_mode
from fxprune.compiler.native.fingerprint import Fingerprint
from fxprune.compiler.native.structure import doubled_copy
from fxprune.graph.classes import subclass_of
from fxprune.graph.example import Example
from fxprune.result.decorators import undecorated, with_code
from fxprune.result.own_places import assigned_names
from fxprune.result.own_spelling import Place, Source

__all__ = ["Calls", "calls_noted", "functions_of", "numbers_noted"]

NOTED = "_fxprune_noted"  # what code is given to tell its numbers by; of a module, its path
_APART = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda, ast.JoinedStr)
_OF_FRAMES = {"super", "locals", "vars", "dir", "eval", "exec", "globals"}  # they look at who calls them

# By module and place, for each call: the leaves of its arguments, and of its result.
Calls = dict[tuple[str, Place], list[tuple[list[Any], list[Any]]]]


def numbers_noted(
    model: nn.Module,
    cls: type,
    sources: Sequence[Source],
    example: Example,
    seen: dict[tuple[str, Place], set[Any]],
) -> None:
    """Run a model; note what all expressions in a class's methods give: whole numbers, None for others."""

    def note(path: str, place: Place, value: Any) -> Any:
        seen[path, place].add(value if type(value) is int else None)
        return value

    _run_as(_noting(cls, sources, _Noter, note), cls, model, example)


def calls_noted(model: nn.Module, cls: type, sources: Sequence[Source], example: Example) -> Calls:
    """Run a model; note what functions are given and return that a class's methods call."""
    found: Calls = defaultdict(list)

    def note(path: str, place: Place, function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            given = [_outline(leaf) for leaf in pytree.tree_leaves((args, kwargs))]
            result = function(*args, **kwargs)
            found[path, place].append((given, [_outline(leaf) for leaf in pytree.tree_leaves(result)]))
            return result

        return call

    _run_as(_noting(cls, sources, _CallNoter, note), cls, model, example)
    return dict(found)


def _outline(leaf: Any) -> Any:
    """Keep what tells a leaf: a whole number, or enough of a tensor."""
    if isinstance(leaf, Tensor):
        return Fingerprint.of(leaf)
    return leaf if type(leaf) is int else None


def functions_of(cls: type) -> Iterator[types.FunctionType]:
    """List the methods that a class's `forward` is, and those that it names."""
    seen, front = set[str](), ["forward"]
    while front:
        name = front.pop()
        found = next((vars(base)[name] for base in cls.__mro__ if name in vars(base)), None)
        every_modules = hasattr(nn.Module, name) and name != "forward"
        if name in seen or every_modules or not isinstance(found, types.FunctionType):
            continue
        seen.add(name)
        yield found
        front += [*found.__code__.co_names, *undecorated(found).__code__.co_names]


def _run_as(noting: Any, cls: type, model: nn.Module, example: Example) -> None:
    """Run a copy of a model whose modules of a class are of the one that `_noting` made of it."""
    double = doubled_copy(model)
    in_eval_mode(double)
    for path, module in double.named_modules():
        if type(module) is cls:
            module.__class__ = noting
            vars(module)[NOTED] = path
    with torch.no_grad(), same_draws(double), in_double():
        double(*example.args, **example.kwargs)


def _noting(
    cls: type,
    sources: Sequence[Source],
    noter: Callable[[Source, list[Place]], ast.NodeTransformer],
    note: Callable[[str, Place, Any], Any],
) -> Any:
    """Make a class whose methods hand what is at some places to a function, and take what it gives.

    noter: lists the places.
    note: of a module's path, a place in its code, and what is there.
    """
    methods: dict[str, object] = {}
    for source in sources:
        places: list[Place] = []
        code = source.changed(noter(source, places))

        def noted(module: nn.Module, i: int, value: Any, places: list[Place] = places) -> Any:
            return note(getattr(module, NOTED, ""), places[i], value)

        methods[source.function.__name__] = with_code(source.function, code, {NOTED: noted})
    return subclass_of(cls, methods)


def _told(source: Source, places: list[Place], place: Place, node: ast.expr) -> ast.expr:
    """List a place, and spell out the call that tells what is there."""
    places.append(place)
    number = ast.Constant(len(places) - 1)
    return ast.Call(ast.Name(NOTED, ast.Load()), [ast.Name(source.self_name, ast.Load()), number, node], [])


class _CallNoter(ast.NodeTransformer):
    """Wraps every function that a method calls with a call that tells it."""

    def __init__(self, source: Source, places: list[Place]) -> None:
        self.source, self.places = source, places

    def visit(self, node: ast.AST) -> Any:
        if isinstance(node, _APART) and node is not self.source.node and not self._is_method(node):
            return node
        return super().visit(node)

    def _is_method(self, node: ast.AST) -> bool:
        return isinstance(node, ast.FunctionDef) and node.lineno == self.source.first

    def visit_Call(self, node: ast.Call) -> ast.AST:
        if isinstance(node.func, ast.Name) and node.func.id in _OF_FRAMES:
            return node
        place = self.source.place(node.func)
        self.generic_visit(node)
        node.func = _told(self.source, self.places, place, node.func)
        return node


class _Noter(ast.NodeTransformer):
    """Wraps every expression of a method, and follows every assignment, with a call that tells its value."""

    def __init__(self, source: Source, places: list[Place]) -> None:
        self.source, self.places = source, places

    def visit(self, node: ast.AST) -> Any:
        assert isinstance(node, ast.FunctionDef)
        node.body = [made for statement in node.body for made in self._statements(statement)]
        return node

    def _visited(self, node: ast.AST) -> Any:
        place = self._place(node)
        if place is not None and isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            node.func.value = self._visited(node.func.value)
            node.args, node.keywords = self._items_of(node.args), self._items_of(node.keywords)
            return self._note(place, node)
        for name, value in ast.iter_fields(node):
            if isinstance(value, list):
                setattr(node, name, self._items_of(value))
            elif isinstance(value, ast.AST) and not isinstance(value, _APART) and name not in ("annotation",):
                setattr(node, name, self._visited(value))
        return node if place is None else self._note(place, node)

    def _items_of(self, items: list[Any]) -> list[Any]:
        made: list[Any] = []
        for item in items:
            if isinstance(item, ast.stmt):
                made += self._statements(item)
            else:
                is_apart = isinstance(item, _APART) or not isinstance(item, ast.AST)
                made.append(item if is_apart else self._visited(item))
        return made

    def _statements(self, node: ast.stmt) -> list[ast.stmt]:
        if isinstance(node, _APART):
            return [node]
        names = [*assigned_names(node)]
        made = [
            ast.Expr(self._note(self.source.place(node, name), ast.Name(name, ast.Load()))) for name in names
        ]
        return [self._visited(node), *made]

    def _place(self, node: ast.AST) -> Place | None:
        """Name an expression that may give a size, and that something else may stand for."""
        if isinstance(node, ast.Constant):
            return self.source.place(node) if type(node.value) is int and node.value > 1 else None
        if isinstance(node, (ast.Name, ast.Attribute, ast.Subscript)) and not isinstance(node.ctx, ast.Load):
            return None
        if isinstance(node, (ast.Name, ast.Attribute, ast.Subscript, ast.Call, ast.BinOp)):
            return self.source.place(node)
        return None

    def _note(self, place: Place, node: Any) -> ast.expr:
        return _told(self.source, self.places, place, node)
