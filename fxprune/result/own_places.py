"""Where in a method's code an attribute can stand for what is written: sizes, calls, assigned variables."""

from __future__ import annotations

import ast
from collections.abc import Iterator

__all__ = ["Span", "assigned_names", "places_in"]

Span = tuple[ast.expr | ast.stmt, str, bool]  # (what is written, the variable that it assigns, is it called?)

_SIZES = (ast.Constant, ast.Name, ast.Attribute, ast.Subscript, ast.Call, ast.BinOp)  # may give a size


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
