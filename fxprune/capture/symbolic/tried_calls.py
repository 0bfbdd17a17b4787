"""Calls that a model's code tries: a handler goes on where they raise, for another size as well."""

from __future__ import annotations

import ast
import dis
import functools
import inspect
import textwrap
import types
from collections.abc import Iterator

from fxprune.graph.source_files import is_users

__all__ = ["Place", "handled_at", "may_be_tried", "tried_at"]

Place = tuple[types.CodeType, int]


def may_be_tried(frame: types.FrameType | None, outermost: types.CodeType) -> Iterator[Place]:
    """Yield the users' functions on the stack that handle errors, each with its line; inwards from one."""
    while frame is not None and frame.f_code is not outermost:
        code = frame.f_code
        if _handles_errors(code) and is_users(code.co_filename):
            yield code, frame.f_lineno
        frame = frame.f_back


@functools.lru_cache(1 << 14)
def _handles_errors(code: types.CodeType) -> bool:
    if hasattr(code, "co_exceptiontable"):
        return bool(code.co_exceptiontable)
    return any(op == dis.opmap["SETUP_FINALLY"] for op in code.co_code[::2])  # Python 3.10


def tried_at(code: types.CodeType, line: int) -> bool:
    """Does a line stand in a `try`, or in a `with suppress(..)`, of which a handler goes on?"""
    tree, at = _tree_of(code, line)
    if tree is None:
        return True
    tries = (node for node in ast.walk(tree) if isinstance(node, (ast.Try, ast.With)) and _goes_on(node))
    return any(node.body[0].lineno <= at <= (node.body[-1].end_lineno or 0) for node in tries)


def handled_at(code: types.CodeType, line: int) -> bool:
    """Does a line stand in a `try` of its own function, or does one in the statement that it begins?"""
    if not _handles_errors(code):
        return False
    tree, at = _tree_of(code, line)
    if tree is None:
        return True
    tries = (node for node in ast.walk(tree) if isinstance(node, ast.Try))
    return any(node.lineno <= at <= (node.end_lineno or 0) or _begins_at(tree, node, at) for node in tries)


def _begins_at(tree: ast.AST, inner: ast.AST, line: int) -> bool:
    """Does a statement that begins at a line hold another one?"""
    holders = (
        node for node in ast.walk(tree) if isinstance(node, (ast.If, ast.While)) and node.lineno == line
    )
    return any(inner in ast.walk(node) for node in holders)


def _tree_of(code: types.CodeType, line: int) -> tuple[ast.AST | None, int]:
    """Parse a function's source; with a line of its file, counted in it.  None: no source, or a lambda's."""
    try:
        lines, first = inspect.getsourcelines(code)
        return ast.parse(textwrap.dedent("".join(lines))), line - first + 1
    except (OSError, TypeError, SyntaxError):
        return None, 0


def _goes_on(node: ast.Try | ast.With) -> bool:
    if isinstance(node, ast.Try):
        return any(not isinstance(handler.body[-1], ast.Raise) for handler in node.handlers)
    return any("suppress" in ast.unparse(item.context_expr) for item in node.items)
