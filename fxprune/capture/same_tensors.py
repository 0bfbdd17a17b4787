"""Code that asks whether two tensors are one (`y is x`, `id(x)`): of stand-ins neither capture can tell.

`x.contiguous()` is x itself where x lies in memory so, and another tensor elsewhere; a stand-in for it is
always another.  Python's `is` looks where nothing can be replaced, so its code is looked for.
"""

from __future__ import annotations

import builtins
import contextlib
import dis
import functools
import inspect
import sys
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import fx, nn

from fxprune.graph.code_names import codes_in, plain_functions, steps_of
from fxprune.graph.process_lock import this_thread_only
from fxprune.graph.source_files import is_users

__all__ = ["noticed_comparisons", "refuse_comparisons", "refused_ids"]

_IS = dis.opmap["IS_OP"]
_LOCAL = {"LOAD_FAST", "LOAD_DEREF", "LOAD_CLASSDEREF"}


def refuse_comparisons(
    lines: Iterable[str],
    nodes: Iterable[fx.Node],
    line_of: Callable[[fx.Node], str] = lambda node: node.meta.get("where") or node.name,
) -> None:
    """Refuse nodes that may be the very tensor that they are given, where code compares values by `is`.

    Raises:
        NotImplementedError: names both lines.
    """
    asking, passing = next(iter(lines), None), next(iter(nodes), None)
    if asking is None or passing is None:
        return
    raise NotImplementedError(
        f"{asking} asks by `is` whether two values are one, and what is called at {line_of(passing)} may "
        f"return the very tensor that it is given, or another"
    )


@contextlib.contextmanager
def noticed_comparisons(
    model: nn.Module, functions: Iterable[types.FunctionType]
) -> Iterator[dict[str, None]]:
    """Yield the lines that compare local names by `is`, of those functions that are called meanwhile.

    Such a function has other code for that time, which runs its own.  (`sys.settrace` would double the time.)
    The model's own `forward` is called anyway, and its code is asked for names of inputs.
    """
    found, called = dict[str, None](), {*plain_functions(type(model).forward)}
    with contextlib.ExitStack() as undo:
        for function in dict.fromkeys(functions):
            lines = filter(None, map(_line_of_comparison, codes_in(function.__code__)))
            where = next((f"{function.__code__.co_filename}:{line}" for line in lines), None)
            if where is not None and (function in called or function.__closure__ is not None):
                found[where] = None  # (the code of a closure can't be replaced: it may be called)
            elif where is not None:
                _note_calls(function, functools.partial(found.setdefault, where), undo)
        yield found


def _note_calls(function: types.FunctionType, note: Callable[[], Any], undo: contextlib.ExitStack) -> None:
    own, space = function.__code__, function.__globals__
    same = types.FunctionType(own, space, function.__name__, function.__defaults__)
    same.__kwdefaults__ = function.__kwdefaults__

    def called(*args: Any, **kwargs: Any) -> Any:
        note()
        return same(*args, **kwargs)

    name = f"__fxprune_called_{builtins.id(function)}__"
    undo.callback(space.pop, name)
    if not hasattr(function, "__signature__"):
        function.__signature__ = inspect.signature(function)  # type: ignore[attr-defined]
        undo.callback(delattr, function, "__signature__")
    undo.callback(setattr, function, "__code__", own)
    space[name] = called
    shown: dict[str, Any] = {"co_filename": own.co_filename, "co_name": own.co_name}
    # Its own code stays in what it refers to, for those who look what is named there.
    function.__code__ = _CALLS.replace(co_names=(name,), co_consts=(*_CALLS.co_consts, own), **shown)


_CALLS = compile("def f(*args, **kwargs): return called(*args, **kwargs)", "", "exec").co_consts[0]


@functools.lru_cache(1 << 14)
def _line_of_comparison(code: types.CodeType) -> int | None:
    """Return the first line that compares two local names by `is`."""
    if _IS not in code.co_code[::2]:
        return None
    before = list[dis.Instruction]()
    for line, step in steps_of(code):
        names = [s.argval for s in before[-2:] if s.opname in _LOCAL]
        if step.opcode == _IS and len(names) == 2 and "self" not in names:
            return line
        before.append(step)
    return None


@contextlib.contextmanager
def refused_ids(stands_in: Callable[[Any], bool]) -> Iterator[None]:
    """Refuse `id(x)` of stand-ins in a model's code."""
    here, before = this_thread_only(), builtins.id

    def asked(x: Any) -> int:
        if stands_in(x) and here() and is_users(sys._getframe(1).f_code.co_filename):
            raise NotImplementedError("the code asks a value for its id, which no graph holds")
        return before(x)

    builtins.id = asked
    try:
        yield
    finally:
        builtins.id = before
