"""What code does with a size as a key: looks it up in a table that is there, counts it, or fills a table."""

from __future__ import annotations

import ast
import collections
import dis
import enum
import functools
import inspect
import itertools
import textwrap
import types

from fxprune.graph.code_names import names_before

__all__ = ["LIBRARY", "counts", "looks_up"]

LIBRARY = {enum.__file__, collections.__file__}
_HASHING = {"hash", "dict", "set", "frozenset", "fromkeys", "Counter", "OrderedDict", "defaultdict"}
_LOOK_UPS = {dis.opmap[name] for name in ("CONTAINS_OP", "BINARY_SUBSCR") if name in dis.opmap}
_SUBSCRIPTS = {  # from Python 3.14 on
    (dis.opmap.get("BINARY_OP"), i) for i, (_, sign) in enumerate(getattr(dis, "_nb_ops", ())) if sign == "[]"
}
_MAKES = {
    dis.opmap[name] for name in ("BUILD_SET", "BUILD_MAP", "SET_UPDATE", "SET_ADD", "MAP_ADD", "DICT_UPDATE")
}
_FILLING = {"add", "setdefault", "update"}


def looks_up(caller: types.FrameType) -> bool:
    """Does a frame look something up in a table that its code does not fill, or make one of it?"""
    code = caller.f_code
    at, argument = code.co_code[caller.f_lasti : caller.f_lasti + 2]
    if at in _MAKES:
        return True
    if (
        at in _LOOK_UPS
        or (at, argument) in _SUBSCRIPTS
        or ("get" in code.co_names and "get" in names_before(code, caller.f_lasti))
    ):
        looked_up, filled = _tables(code)
        here = {name for place, name in looked_up.items() if _stands_at(place, caller)}
        return not here or not here <= filled
    return False


_Place = tuple[int, int, int, int]  # line, last line, column, last column


def _stands_at(place: _Place, caller: types.FrameType) -> bool:
    """Does a frame run what stands at a place?  (Before Python 3.11 it knows the line alone.)"""
    code = caller.f_code
    if not hasattr(code, "co_positions"):
        return place[0] <= caller.f_lineno <= place[1]
    at = next(itertools.islice(code.co_positions(), caller.f_lasti // 2, None))
    return place == at


@functools.lru_cache(1 << 12)
def _tables(code: types.CodeType) -> tuple[dict[_Place, str], frozenset[str]]:
    """Return the tables that code looks up, with the places where it does, and those that it fills."""
    try:
        lines, first = inspect.getsourcelines(code)
        tree = ast.parse(textwrap.dedent("".join(lines)))
    except (OSError, TypeError, SyntaxError):  # no source, or a lambda's: it fills none that we know of
        return {}, frozenset()
    indent = len(lines[0]) - len(lines[0].lstrip())
    looked_up, filled = dict[_Place, str](), set[str]()
    for node in ast.walk(tree):
        table: ast.expr | None = None
        if isinstance(node, ast.Subscript):
            table, fills = node.value, not isinstance(node.ctx, ast.Load)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            fills = node.func.attr in _FILLING
            table = node.func.value if fills or node.func.attr == "get" else None
        elif isinstance(node, ast.Compare) and isinstance(node.ops[0], (ast.In, ast.NotIn)):
            table, fills = node.comparators[0], False
        if table is None or not isinstance(node, ast.expr):
            continue
        if fills:
            filled.add(ast.unparse(table))
        else:
            last, column = node.end_lineno or node.lineno, node.end_col_offset or 0
            place = node.lineno + first - 1, last + first - 1, node.col_offset + indent, column + indent
            looked_up[place] = ast.unparse(table)
    return looked_up, frozenset(filled)


def counts(caller: types.FrameType) -> bool:
    """Does a frame hash, or fill a table that no module keeps?"""
    code = caller.f_code
    if not _HASHING.isdisjoint(code.co_names):
        return True
    known = dict(caller.f_locals)
    if code.co_flags & inspect.CO_VARKEYWORDS:  # `**options` is no table
        starred = code.co_argcount + code.co_kwonlyargcount + bool(code.co_flags & inspect.CO_VARARGS)
        known.pop(code.co_varnames[starred], None)
    kept = {id(value) for held in known.values() for value in getattr(held, "__dict__", {}).values()}
    return any(isinstance(v, (dict, set)) and id(v) not in kept for v in known.values())
