"""What code does with a size as a key: looks it up in a table that is there, counts it, or fills a table."""

from __future__ import annotations

import collections
import dis
import enum
import inspect
import types

from fxprune.graph.code_names import names_before
from fxprune.graph.source_files import is_users

__all__ = ["LIBRARY", "counts", "looks_up", "users_frame"]

LIBRARY = {enum.__file__, collections.__file__}
_HASHING = {"hash", "dict", "set", "frozenset", "fromkeys", "Counter", "OrderedDict", "defaultdict"}
_LOOK_UPS = {dis.opmap[name] for name in ("CONTAINS_OP", "BINARY_SUBSCR") if name in dis.opmap}
_MAKES = {
    dis.opmap[name] for name in ("BUILD_SET", "BUILD_MAP", "SET_UPDATE", "SET_ADD", "MAP_ADD", "DICT_UPDATE")
}
_FILLS = {dis.opmap["STORE_SUBSCR"]}
_FILLING = {"add", "setdefault", "update"}


def looks_up(caller: types.FrameType) -> bool:
    """Does a frame look something up in a table that its code does not fill, or make one of it?"""
    code, at = caller.f_code, caller.f_code.co_code[caller.f_lasti]
    if at in _MAKES:
        return True
    if at in _LOOK_UPS or ("get" in code.co_names and "get" in names_before(code, caller.f_lasti)):
        return not (_FILLS & {*code.co_code[::2]} or _FILLING & {*code.co_names})
    return False


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


def users_frame(frame: types.FrameType) -> types.FrameType:
    """Return the innermost frame of the model's own code, from a library's on."""
    at: types.FrameType | None = frame
    while at is not None and not is_users(at.f_code.co_filename):
        at = at.f_back
    return at or frame
