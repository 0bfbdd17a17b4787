"""Find the sizes that modules' code computes, and what each may have become: where only code says them.

An expression is one if it gives the same whole number whenever the original's module is called, whatever the
number and the height of its images, and the number of its tokens.
"""

from __future__ import annotations

import ast
import contextlib
import types
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fxprune.certify.comparison import same_draws
from fxprune.certify.float64 import in_double, in_eval_mode
from fxprune.compiler.native.proposals import Options, Scope
from fxprune.compiler.native.sizes import Sizes
from fxprune.compiler.native.structure import doubled_copy
from fxprune.graph.classes import subclass_of
from fxprune.graph.example import Example
from fxprune.result.own_code import Slot
from fxprune.result.own_spelling import Place, Source, source_of, spelled_class, with_code

__all__ = ["AS_WRITTEN", "SpelledSlot", "Spellings"]

NOTED = "_fxprune_noted"  # what code is given to tell its numbers by; of a module, its path
AS_WRITTEN = 0  # the number of a place where the code says what it always said
_APART = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda, ast.JoinedStr)


@dataclass
class Spellings:
    """The sizes in the code of a model's modules; not frozen: it looks at a class when it is asked of one.

    examples: on which the original runs.
    """

    model: nn.Module
    sizes: Mapping[str, Sizes]
    examples: Sequence[Example]
    known: dict[type, Mapping[str, dict[Place, int]]] = field(default_factory=dict)
    classes: dict[str, type[nn.Module]] = field(default_factory=dict)
    chosen: dict[str, dict[Place, int]] = field(default_factory=lambda: defaultdict(dict))

    def options(self, scope: Scope, root: nn.Module) -> Options:
        """List every size that a module's own code computes, and what it may have become.

        If `wide`, also those of attributes, which state has.
        """
        module = self.model.get_submodule(scope.path)
        if type(root.get_submodule(scope.path)).__module__.partition(".")[0] == "torch":
            return []
        cls = type(module)
        if cls not in self.known:
            self.known[cls] = self._numbers(cls)
        found: Options = []
        for place, old in self.known[cls].get(scope.path, {}).items():
            news = [n for n in self._may_be(scope.path, old) if n != old]
            if news and (scope.wide or not _is_attribute(place)):
                # The old one, too: what it is made of may have another.
                slot = SpelledSlot(scope.path, (place.attribute,), 0, place=place, old=old, spellings=self)
                found.append((slot, [*news, old, AS_WRITTEN]))
        return found

    def write(self, module: nn.Module, path: str, place: Place, new: int) -> None:
        """Let the code of a module have another size at a place, or again what stands there."""
        chosen, state = self.chosen[path], vars(module)
        if new == AS_WRITTEN:
            chosen.pop(place, None)
            state.pop(place.attribute, None)
        else:
            chosen[place] = state[place.attribute] = new
        cls = self.classes.setdefault(path, type(module))
        module.__class__ = spelled_class(cls, tuple(sorted(chosen))) if chosen else cls

    def _may_be(self, path: str, old: int) -> list[int]:
        found = self.sizes[path].may_be(old)
        while path and not found:
            path = path.rpartition(".")[0]
            found = self.sizes[path].may_be(old)
        return found

    def _numbers(self, cls: type) -> Mapping[str, dict[Place, int]]:
        """Run the original; for each module of a class, what numbers its expressions always give."""
        sources = [source for function in _functions(cls) if (source := source_of(function)) is not None]
        if not sources:
            return {}
        seen: dict[tuple[str, Place], set[Any]] = defaultdict(set)

        def note(path: str, place: Place, value: Any) -> None:
            seen[path, place].add(value if type(value) is int else None)

        try:
            noting = _noting(cls, sources, note)
            for example in self.examples:
                _run_as(noting, cls, self.model, example)
        except Exception:  # code that can't be looked at so
            return {}
        with contextlib.suppress(Exception):  # not every model takes more tokens
            _run_as(noting, cls, self.model, self.examples[0].map(_longer))
        found: dict[str, dict[Place, int]] = defaultdict(dict)
        for (path, place), values in seen.items():
            (value,) = values if len(values) == 1 else (None,)
            if type(value) is int and value > 1:
                found[path][place] = value
        return found


@dataclass(frozen=True)
class SpelledSlot(Slot):
    """A size at a place in a module's code; `AS_WRITTEN`, until a number is written."""

    place: Place = field(kw_only=True)
    old: int = field(kw_only=True)
    spellings: Spellings = field(kw_only=True, compare=False, repr=False)

    def __str__(self) -> str:
        return f"{self.path}.{self.place.method}: {self.place.text}"

    def read(self, root: nn.Module) -> int:
        return self.spellings.chosen[self.path].get(self.place, AS_WRITTEN)

    def write(self, root: nn.Module, new: int) -> None:
        if new != self.read(root):
            self.spellings.write(root.get_submodule(self.path), self.path, self.place, new)


def _longer(t: Tensor) -> Tensor:
    """Repeat tokens, or what they have become: a number of them is no width."""
    return torch.cat([t, t], 1) if t.ndim in (2, 3) else t


def _functions(cls: type) -> Iterator[types.FunctionType]:
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
        front += found.__code__.co_names


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


def _noting(cls: type, sources: Sequence[Source], note: Callable[[str, Place, Any], None]) -> Any:
    """Make a class whose methods tell the values of their expressions: module's path, place, value."""
    methods: dict[str, object] = {}
    for source in sources:
        places: list[Place] = []
        code = source.changed(_Noter(source, places))

        def noted(module: nn.Module, i: int, value: Any, places: list[Place] = places) -> Any:
            note(getattr(module, NOTED, ""), places[i], value)
            return value

        methods[source.function.__name__] = with_code(source.function, code, {NOTED: noted})
    return subclass_of(cls, methods)


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
        names = [*_assigned(node)]
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
        self.places.append(place)
        self_name = ast.Name(self.source.self_name, ast.Load())
        number = ast.Constant(len(self.places) - 1)
        return ast.Call(ast.Name(NOTED, ast.Load()), [self_name, number, node], [])


def _is_attribute(place: Place) -> bool:
    """Is it the name of what some object has?"""
    return "." in place.text and not place.name and all(word.isidentifier() for word in place.text.split("."))


def _assigned(node: ast.stmt) -> Iterator[str]:
    """List the local variables that a statement assigns."""
    for target in node.targets if isinstance(node, ast.Assign) else ():
        for item in target.elts if isinstance(target, (ast.Tuple, ast.List)) else [target]:
            if isinstance(item, ast.Name):
                yield item.id
