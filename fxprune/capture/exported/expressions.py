"""Expressions over the sizes of inputs, as torch.export writes them, become nodes at the entry of a graph."""

from __future__ import annotations

import ast
import functools
import math
import operator
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import fx

__all__ = ["Field", "Path", "Reader", "conditions", "size_of", "spelled", "spelled_condition", "step"]

Path = tuple[Any, ...]  # a parameter of forward, and keys inward


class Field(str):
    """A field of a named tuple, as a key of a path."""


_OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {
    **{ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Pow: operator.pow},
    **{ast.Div: operator.truediv, ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod},
    **{ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Lt: operator.lt, ast.LtE: operator.le},
    **{ast.Gt: operator.gt, ast.GtE: operator.ge, ast.USub: operator.neg},
}
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{"torch.sym_max": torch.sym_max, "torch.sym_min": torch.sym_min, "max": torch.sym_max},
    **{"min": torch.sym_min, "float": torch.sym_float, "torch.sym_float": torch.sym_float},
    **{"math.trunc": math.trunc, "math.floor": math.floor, "math.ceil": math.ceil, "int": torch.sym_int},
    **{"math.sqrt": torch.sym_sqrt, "torch.sym_sqrt": torch.sym_sqrt, "torch._sym_sqrt": torch.sym_sqrt},
}


def conditions(code: str) -> Iterator[ast.expr]:
    """Yield what an expression requires all of, mostly comparisons of two sides."""
    front = [ast.parse(code, mode="eval").body]
    while front:
        tree = front.pop()
        if isinstance(tree, ast.BoolOp) and isinstance(tree.op, ast.And):
            front += reversed(tree.values)
        elif isinstance(tree, ast.Compare):
            sides = [tree.left, *tree.comparators]
            for i, op in enumerate(tree.ops):
                yield ast.Compare(sides[i], [op], [sides[i + 1]])
        else:
            yield tree


def size_of(tree: ast.expr) -> tuple[Path, int] | None:
    """Return the argument and the dimension of `L['x'].size()[0]`; None for any other expression."""
    match tree:
        case ast.Subscript(
            value=ast.Call(func=ast.Attribute(value=source, attr="size"), args=[]),
            slice=ast.Constant(value=int(dim)),
        ):
            path = _path(source)
            return None if path is None else (path, dim)
    return None


def _path(tree: ast.expr) -> Path | None:
    """Parse `L['x'][0]` to `("x", 0)`, and `L['x'].ids` to `("x", Field("ids"))`."""
    keys: list[Any] = []
    while isinstance(tree, (ast.Subscript, ast.Attribute)):
        if isinstance(tree, ast.Attribute):
            keys.append(Field(tree.attr))
        elif isinstance(tree.slice, ast.Constant):
            keys.append(tree.slice.value)
        else:
            return None
        tree = tree.value
    return tuple(reversed(keys)) if isinstance(tree, ast.Name) and tree.id == "L" and keys else None


def spelled(path: Path) -> str:
    """Spell a path for a reader: `x[0]`."""
    return str(path[0]) + "".join(map(step, path[1:]))


def step(key: Any) -> str:
    """Spell one key of a path: `[0]`, `['a']`, `.ids`."""
    return f".{key}" if isinstance(key, Field) else f"[{key!r}]"


class _Spelled(ast.NodeTransformer):
    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        found = size_of(node)
        if found is None:
            return node
        return ast.Name(f"dimension {found[1]} of {spelled(found[0])}")


def spelled_condition(tree: ast.expr) -> str:
    """Spell a condition for a reader: `dimension 2 of x % 4 == 0`."""
    return ast.unparse(_Spelled().visit(ast.parse(ast.unparse(tree), mode="eval")))


class Reader:
    """The nodes at the entry of a graph that read sizes and compute with them; each is made once."""

    def __init__(self, graph: fx.Graph, after: fx.Node, inputs: dict[str, fx.Node]) -> None:
        self.graph, self.after = graph, after
        self._of: dict[Path, fx.Node] = {(name,): node for name, node in inputs.items()}
        self._known: dict[str, Any] = {}

    def call(self, target: Any, *args: Any, **words: Any) -> fx.Node:
        with self.graph.inserting_after(self.after):
            made = self.graph.call_method if isinstance(target, str) else self.graph.call_function
            self.after = made(target, args, words)
        return self.after

    def size(self, path: Path, dim: int) -> Any:
        key = f"{path} {dim}"
        if key not in self._known:
            self._known[key] = self.call("size", self._value(path), dim)
        return self._known[key]

    def _value(self, path: Path) -> fx.Node:
        if path not in self._of:
            if len(path) < 2:
                raise NotImplementedError(f"torch.export names an input {path} that forward has not")
            of, key = self._value(path[:-1]), path[-1]
            is_field = isinstance(key, Field)
            self._of[path] = self.call(
                getattr if is_field else operator.getitem, of, str(key) if is_field else key
            )
        return self._of[path]

    def value(self, tree: ast.expr) -> Any:
        """Return the node, or the number, of an expression.

        Raises:
            NotImplementedError: it holds something else than arithmetic on sizes.
        """
        key = ast.dump(tree)
        if key not in self._known:
            self._known[key] = self._computed(tree)
        return self._known[key]

    def _computed(self, tree: ast.expr) -> Any:
        found = size_of(tree)
        if found is not None:
            return self.size(*found)
        match tree:
            case ast.Constant(value=int() | float() as number):
                return number
            case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number)):
                return -number
            case ast.BoolOp(op=op, values=values):
                both = operator.or_ if isinstance(op, ast.Or) else operator.and_
                return functools.reduce(functools.partial(self.call, both), map(self.value, values))
            case ast.UnaryOp(op=op, operand=a) if type(op) in _OPERATORS:
                return self.call(_OPERATORS[type(op)], self.value(a))
            case ast.BinOp(left=a, op=op, right=b) if type(op) in _OPERATORS:
                return self.call(_OPERATORS[type(op)], self.value(a), self.value(b))
            case ast.Compare(left=a, ops=[op], comparators=[b]) if type(op) in _OPERATORS:
                return self.call(_OPERATORS[type(op)], self.value(a), self.value(b))
            case ast.Call(func=func, args=args, keywords=[]) if ast.unparse(func) in _FUNCTIONS:
                return self.call(_FUNCTIONS[ast.unparse(func)], *map(self.value, args))
        raise NotImplementedError(f"torch.export relies on {ast.unparse(tree)}")
