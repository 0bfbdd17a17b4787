"""Mutants of source: a function that does nothing, a statement that is left out.

Only statements that write are left out (a call for its effect, an assignment to an attribute or an
element, an augmented assignment): without an assignment to a name the next line would not run at all.
"""

from __future__ import annotations

import ast
import functools
import gc
import types
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paths import ROOT


@dataclass(frozen=True)
class SourceMutant:
    """One function of a file, with a statement less or with none at all."""

    file: str
    function: str
    lines: range  # a test that runs one of them sees the mutant
    text: str
    code: types.CodeType

    def __str__(self) -> str:
        return f"{self.file}: {self.function}: {self.text}"

    @property
    def path(self) -> str:
        return str(ROOT / self.file)

    def apply(self) -> None:
        """Put it in the place of the function, wherever that is already referred to."""
        functions = loaded()[_place(self.code)]
        if not functions:
            raise LookupError(f"no function {self.function} is loaded from {self.file}")
        for function in functions:
            function.__code__ = self.code


@functools.cache
def loaded() -> dict[tuple[Any, ...], list[types.FunctionType]]:
    """Every function of the package, by its place.  Call it before there are forks: it takes a second."""
    found: dict[tuple[Any, ...], list[types.FunctionType]] = defaultdict(list)
    gc.unfreeze()  # the suite freezes what stands before its first test, and frozen objects are not listed
    for thing in gc.get_objects():
        if type(thing) is types.FunctionType and thing.__code__.co_filename.startswith(str(ROOT)):
            found[_place(thing.__code__)].append(thing)
    return found


def _place(code: types.CodeType) -> tuple[Any, ...]:
    return code.co_filename, code.co_name, code.co_firstlineno


def source_mutants(file: str) -> Iterator[SourceMutant]:
    """Every function of a file without all, then each, of its statements."""
    path = ROOT / file
    text = path.read_text()
    tree = ast.parse(text)
    for function in _functions(tree):
        body, name = function.body, function.name
        if not _only_raises(body):
            function.body = [_unreached(body)]
            code = _compiled(tree, path, function)
            lines = range(body[0].lineno, (body[-1].end_lineno or 0) + 1)
            yield SourceMutant(file, name, lines, "does nothing", code)
            function.body = body
        for block, i in list(_writes(function)):
            statement = block[i]
            block[i] = _unreached([statement])
            said = " ".join((ast.get_source_segment(text, statement) or "").split())
            lines = range(statement.lineno, (statement.end_lineno or 0) + 1)
            yield SourceMutant(file, name, lines, f"without {said}", _compiled(tree, path, function))
            block[i] = statement


def _unreached(body: list[ast.stmt]) -> ast.stmt:
    """Left out, and still seen by the compiler: the names that it needs, and whether it yields, stay."""
    return ast.copy_location(ast.If(ast.copy_location(ast.Constant(False), body[0]), body, []), body[0])


def _functions(tree: ast.Module) -> Iterator[ast.FunctionDef]:
    """Functions and methods; what is nested in a function belongs to it."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            yield node
        elif isinstance(node, ast.ClassDef):
            yield from (m for m in node.body if isinstance(m, ast.FunctionDef))


def _only_raises(body: list[ast.stmt]) -> bool:
    return all(isinstance(s, (ast.Raise, ast.Expr)) for s in body)


def _writes(function: ast.FunctionDef) -> Iterator[tuple[list[ast.stmt], int]]:
    for node in ast.walk(function):
        for name in ("body", "orelse", "finalbody"):
            block = getattr(node, name, None)
            if isinstance(block, list):
                yield from ((block, i) for i, s in enumerate(block) if _is_write(s))


def _is_write(statement: ast.stmt) -> bool:
    if isinstance(statement, ast.Expr):
        return isinstance(statement.value, ast.Call)
    if isinstance(statement, ast.AugAssign):
        return True
    targets = statement.targets if isinstance(statement, ast.Assign) else []
    return any(isinstance(n, (ast.Attribute, ast.Subscript)) for t in targets for n in ast.walk(t))


def _compiled(tree: ast.Module, path: Path, function: ast.FunctionDef) -> types.CodeType:
    """The code of one function of the tree as it is now."""
    first = min([function.lineno, *(d.lineno for d in function.decorator_list)])
    queue = [compile(tree, str(path), "exec", dont_inherit=True)]
    while queue:
        code = queue.pop()
        if code.co_name == function.name and code.co_firstlineno == first:
            return code
        queue += [c for c in code.co_consts if isinstance(c, types.CodeType)]
    raise LookupError(function.name)
