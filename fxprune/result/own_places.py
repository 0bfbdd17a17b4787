"""Where in a method's code an attribute can stand for what is written: sizes, calls, assigned variables."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["Place", "Span", "assigned_names", "places_in"]

Span = tuple[ast.expr | ast.stmt, str, bool]  # (what is written, the variable that it assigns, is it called?)

_SIZES = (ast.Constant, ast.Name, ast.Attribute, ast.Subscript, ast.Call, ast.BinOp)  # may give a size


@dataclass(frozen=True, order=True)
class Place:
    """An expression in a method's source that an attribute of the module stands for.

    start, end: (line, column in bytes), lines from the method's first.
    text: what is written there.
    name: the local variable that a statement there assigns; the statement stays, and the attribute is
        assigned to it after that.
    call: it is what a call calls, and the attribute makes another function of it: the word that says how.
    """

    method: str
    start: tuple[int, int]
    end: tuple[int, int]
    text: str
    name: str = ""
    call: str = ""

    @property
    def attribute(self) -> str:
        """The attribute that has the number."""
        numbers = "_".join(map(str, (*self.start, *self.end)))  # `C` and `C // heads` begin at one place
        return f"_{self.call or 'size'}_{self.method}_{numbers}" + (f"_{self.name}" if self.name else "")


def places_in(function: ast.FunctionDef) -> Iterator[Span]:
    """Yield all that an attribute can stand for in a function's body."""
    for node in (inner for statement in function.body for inner in ast.walk(statement)):
        if isinstance(node, _SIZES):
            yield node, "", False
        if isinstance(node, ast.Call):
            yield node.func, "", True
        if isinstance(node, ast.stmt):
            yield from ((node, name, False) for name in assigned_names(node))


def assigned_names(node: ast.stmt) -> Iterator[str]:
    """List the local variables that a statement assigns."""
    for target in node.targets if isinstance(node, ast.Assign) else ():
        for item in target.elts if isinstance(target, (ast.Tuple, ast.List)) else [target]:
            if isinstance(item, ast.Name):
                yield item.id
