"""Tell which numbers are read only in branches that no call of a module takes, as it is built."""

from __future__ import annotations

import ast

from torch import nn

from fxprune.compiler.native.barred import own_functions
from fxprune.compiler.native.code_terms import Use, terms_of
from fxprune.graph.code_names import assigned_in, names_of

__all__ = ["only_in_untaken"]


def only_in_untaken(module: nn.Module, name: str) -> bool:
    """Is an attribute read only where another one of the module's is None, or is not, as never in a call?

    `if self.joint is not None: ... else: self.count`: that is so from the constructor on.
    """
    functions = [f for own, f in own_functions(type(module)) if own != "__init__"]
    assigned = {held for function in functions for held in assigned_in(function)}
    for function in functions:
        if name not in names_of(function.__code__):
            continue
        uses = terms_of(function).uses(name)
        if not uses or not all(_is_untaken(module, use, assigned) for use in uses):
            return False
    return True


def _is_untaken(module: nn.Module, use: Use, assigned: set[str]) -> bool:
    node, *around = use
    for outer in around:
        if isinstance(outer, (ast.If, ast.IfExp)) and node is not outer.test:
            body = outer.body if isinstance(outer.body, list) else [outer.body]
            taken = _outcome(module, outer.test, assigned)
            if taken is not None and taken != any(node is part for part in body):
                return True
        node = outer
    return False


def _outcome(module: nn.Module, test: ast.expr, assigned: set[str]) -> bool | None:
    """Tell what `self.name is None`, or `is not`, comes to; None for other tests and names."""
    match test:
        case ast.Compare(
            left=ast.Attribute(value=ast.Name(id="self"), attr=name),
            ops=[(ast.Is() | ast.IsNot()) as op],
            comparators=[ast.Constant(value=None)],
        ) if name not in assigned and hasattr(module, name):
            return (getattr(module, name) is None) == isinstance(op, ast.Is)
    return None
