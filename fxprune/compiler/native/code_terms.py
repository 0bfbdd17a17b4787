"""Read the source of a function: what its numbers are computed of, what it assigns and calls.

A term is a name (`width`), or an attribute of anything by its own name (`.width`).
"""

from __future__ import annotations

import ast
import inspect
import linecache
import textwrap
import types
import weakref
from collections import defaultdict
from collections.abc import Iterable, Iterator

__all__ = ["CodeTerms", "Term", "Use", "is_counted", "is_size", "terms_of"]

Term = str
Use = tuple[ast.AST, ...]  # an attribute's node, and those around it, the innermost first

_ARITHMETIC = {"int", "round", "min", "max", "abs", "sum", "make_divisible", "list", "tuple", "to_2tuple"}
_SAME = {"int", "list", "tuple"}  # of the arithmetic: what gives back what it gets
_COUNTS = {"range", "arange", "topk", "narrow", "randperm", "randint", "islice", "min", "max", "len", "clamp"}
_SHAPED = {
    "zeros",
    "ones",
    "empty",
    "full",
    "rand",
    "randn",
    "view",
    "reshape",
    "expand",
    "unflatten",
    "Size",
}
_SHAPED |= {"new_zeros", "new_ones", "new_empty", "new_full", "format", "print"}
_DIVIDES = (ast.FloorDiv, ast.Mod)
_ORDERS = (ast.Lt, ast.LtE, ast.Gt, ast.GtE)


class CodeTerms:
    """The terms of a function's source; empty where it can't be read."""

    def __init__(self, function: types.FunctionType) -> None:
        body = _body(function)
        self.is_read = bool(body)
        self.locals = {*function.__code__.co_varnames}
        self.calls: list[ast.Call] = []
        self._assigned: dict[str, list[tuple[ast.expr, frozenset[Term]]]] = defaultdict(list)
        self._aliases: dict[Term, set[Term]] = defaultdict(set)
        self._same: dict[Term, set[Term]] = defaultdict(set)  # as the aliases: nothing else is in them
        self.counts: set[Term] = set()  # what code divides by, and counts to
        self._uses: dict[str, list[Use]] = defaultdict(list)
        for statement in body:
            self._look(statement, ())

    def uses(self, name: str) -> list[Use]:
        """List where an attribute of this name is read."""
        return self._uses.get(name, [])

    def is_assigned(self, name: str) -> bool:
        """Does the function give one of its own names a value?"""
        return name in self._aliases

    def values_of(self, name: str) -> list[tuple[ast.expr, frozenset[Term]]]:
        """List what is assigned to an attribute, each with the other targets of that assignment."""
        return self._assigned.get(name, [])

    def assignments(self) -> Iterator[tuple[str, tuple[ast.expr, frozenset[Term]]]]:
        """List each assignment to an attribute."""
        return ((name, value) for name, values in self._assigned.items() for value in values)

    def assigned(self, name: str, key: str | None, *, alone: bool = False) -> Iterator[set[Term]]:
        """List what is assigned to an attribute, each time as all the terms that it is computed of.

        key: of dicts in it, the item.
        alone: only those that it is, or is a multiple of.
        """
        for value, beside in self._assigned.get(name, ()):
            items = [value] if key is None else [*_items(value, key)]
            for item in items or [value]:
                yield self.followed(item, alone=alone) | beside

    def holders(self, name: str) -> Iterator[str]:
        """List the attributes that a parameter, or what is computed of it, is assigned to."""
        for held in self._assigned:
            if any(name in found for found in self.assigned(held, None)):
                yield held

    def followed(self, value: ast.expr, *, alone: bool = False) -> set[Term]:
        """List the terms that a value is computed of, through what the function's own names stand for.

        alone: only those that it is, or is a multiple of.
        """
        front, found = [*_leaves(value, alone)], set[Term]()
        while front:
            term = front.pop()
            if term not in found:
                found.add(term)
                front += (self._same if alone else self._aliases).get(term, ())
        return found

    def _look(self, node: ast.AST, around: Use) -> None:
        if isinstance(node, ast.Call):
            self._look_at_call(node)
        elif isinstance(node, ast.Assign):
            self._assign(node.targets, node.value)
        elif isinstance(node, (ast.AnnAssign, ast.AugAssign)) and node.value is not None:
            self._assign([node.target], node.value)
        elif isinstance(node, (ast.For, ast.comprehension)):
            self._loop(node.target, node.iter)
        elif (
            isinstance(node, ast.Attribute)
            and isinstance(node.ctx, ast.Load)
            and not _is_called(node, around)
        ):
            self._uses[node.attr].append((node, *around))
        elif isinstance(node, ast.BinOp) and isinstance(node.op, _DIVIDES):
            self.counts.update(_leaves(node.right, alone=True))
        for child in ast.iter_child_nodes(node):
            self._look(child, (node, *around))

    def _look_at_call(self, call: ast.Call) -> None:
        self.calls.append(call)
        function = call.func
        if isinstance(function, ast.Name) and function.id in ("range", "enumerate"):
            self.counts.update(term for value in call.args for term in _leaves(value, alone=True))
        if isinstance(function, ast.Attribute) and function.attr in ("append", "extend"):
            for value in call.args:
                self._assign([function.value], value)

    def _assign(self, targets: Iterable[ast.expr], value: ast.expr) -> None:
        beside = frozenset(term for target in targets for term in _leaves(target))
        for target in targets:
            if isinstance(target, (ast.Tuple, ast.List)):
                values = (
                    value.elts if isinstance(value, (ast.Tuple, ast.List)) else [value] * len(target.elts)
                )
                for one, its in zip(target.elts, values, strict=False):
                    self._assign([one], its)
            elif isinstance(target, ast.Attribute):
                self._assigned[target.attr].append((value, beside - {"." + target.attr}))
            elif isinstance(target, ast.Name):
                self._aliases[target.id].update(_leaves(value))
                self._same[target.id].update(_leaves(value, alone=True))

    def _loop(self, target: ast.expr, over: ast.expr) -> None:
        if isinstance(over, ast.Call) and isinstance(over.func, ast.Name) and over.args:
            if over.func.id == "enumerate" and isinstance(target, ast.Tuple):
                return self._loop(target.elts[-1], over.args[0])
            if over.func.id == "zip" and isinstance(target, ast.Tuple):
                for one, its in zip(target.elts, over.args, strict=False):
                    self._loop(one, its)
                return None
        return self._assign([target], over)


_read: weakref.WeakKeyDictionary[types.FunctionType, CodeTerms] = weakref.WeakKeyDictionary()


def terms_of(function: types.FunctionType) -> CodeTerms:
    """Read a function's source, once."""
    if function not in _read:
        _read[function] = CodeTerms(function)
    return _read[function]


def is_counted(use: Use) -> bool:
    """Is a number a bound of a slice, compared with, or counted to?"""
    node, *around = use
    for outer in around:
        if isinstance(outer, ast.Slice):
            return True
        if isinstance(outer, ast.Compare):
            return any(isinstance(op, _ORDERS) for op in outer.ops)
        if isinstance(outer, ast.Call) and node is not outer.func:
            called = outer.func
            name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
            return name in _COUNTS
        if not isinstance(outer, (ast.BinOp, ast.UnaryOp, ast.keyword, ast.Starred, ast.Tuple)):
            return False
        node = outer
    return False


def is_size(use: Use) -> bool:
    """Is a number only handed back, printed, or a size of what is made?"""
    node, *around = use
    for outer in around:
        if isinstance(outer, (ast.Return, ast.FormattedValue, ast.Expr)):
            return True
        if isinstance(outer, ast.Call) and node is not outer.func:
            called = outer.func
            return (
                called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
            ) in _SHAPED
        if not isinstance(outer, (ast.keyword, ast.Starred, ast.Tuple, ast.List, ast.Dict)):
            return False
        node = outer
    return False


def _is_called(node: ast.AST, around: Use) -> bool:
    return bool(around) and isinstance(around[0], ast.Call) and around[0].func is node


def _body(function: types.FunctionType) -> list[ast.stmt]:
    code = function.__code__
    lines = linecache.getlines(code.co_filename, function.__globals__)[code.co_firstlineno - 1 :]
    try:
        written = ast.parse(textwrap.dedent("".join(inspect.getblock(lines)))).body[0]
    except (SyntaxError, IndexError):  # typed in, generated, or of another file by now
        return []
    return written.body if isinstance(written, ast.FunctionDef) and written.name == code.co_name else []


def _leaves(node: ast.AST | None, alone: bool = False) -> Iterator[Term]:
    """List the names and attributes that a value is computed of by arithmetic, or is taken from.

    alone: only those that it is, or is a multiple of.
    """
    inner: Iterable[ast.AST] = ()
    match node:
        case ast.Name():
            yield node.id
        case ast.Attribute():
            yield "." + node.attr
        case ast.BinOp():
            sides = node.left, node.right
            times = [side for side in sides if not isinstance(side, ast.Constant)]
            inner = sides if not alone else times if isinstance(node.op, ast.Mult) and len(times) < 2 else ()
        case ast.UnaryOp():
            inner = [node.operand]
        case ast.Subscript() | ast.Starred() | ast.keyword():
            inner = [node.value]
        case ast.IfExp():
            inner = [node.body, node.orelse]
        case ast.Call():
            name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
            known = _SAME if alone else _ARITHMETIC
            inner = (*node.args, *node.keywords) if name in {*known, "dict"} else ()
        case ast.BoolOp() | ast.Dict():
            inner = node.values
        case ast.Tuple() | ast.List():
            inner = node.elts
        case ast.ListComp() | ast.GeneratorExp():
            inner = [node.elt]
    for one in inner:
        yield from _leaves(one, alone)


def _items(node: ast.expr, key: str) -> Iterator[ast.expr]:
    """List what stands in the dicts that a value is written as, under a key."""
    for inner in ast.walk(node):
        if isinstance(inner, ast.keyword) and inner.arg == key:
            yield inner.value
        elif isinstance(inner, ast.Dict):
            for word, value in zip(inner.keys, inner.values, strict=True):
                if isinstance(word, ast.Constant) and word.value == key:
                    yield value
