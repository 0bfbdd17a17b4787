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
import itertools
import operator
import sys
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import fx, nn

from fxprune.graph.code_names import codes_in, ends_statement, plain_functions, steps_of
from fxprune.graph.process_lock import this_thread_only
from fxprune.graph.source_files import is_users
from fxprune.graph.writes import is_itself

__all__ = ["noticed_comparisons", "refuse_comparisons", "refused_ids"]

_IS = dis.opmap["IS_OP"]
_LOCAL = ("LOAD_FAST", "LOAD_DEREF", "LOAD_CLASSDEREF", "STORE_FAST_LOAD_FAST")


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
    model: nn.Module,
    functions: Iterable[types.FunctionType],
    may_be_one: Callable[[Any, Any], bool] = lambda a, b: True,
) -> Iterator[dict[str, None]]:
    """Yield the lines that compare local values by `is`, of those functions that are called meanwhile.

    may_be_one: of what a call gives to two parameters that its code compares.

    Such a function has other code for that time, which runs its own.  (`sys.settrace` would double the time.)
    The model's own `forward` is called anyway, and its code is asked for names of inputs.
    """
    found, called = dict[str, None](), {*plain_functions(type(model).forward)}
    with contextlib.ExitStack() as undo:
        for function in dict.fromkeys(functions):
            compared = [c for code in codes_in(function.__code__) for c in comparisons_in(code)]
            if compared and function in called:
                found[f"{function.__code__.co_filename}:{compared[0][0]}"] = None
            elif compared:
                _note_calls(function, functools.partial(_note, function, compared, may_be_one, found), undo)
        yield found


Comparison = tuple[int, tuple[str, ...]]


def _note(
    function: types.FunctionType,
    compared: list[Comparison],
    may_be_one: Callable[[Any, Any], bool],
    found: dict[str, None],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> None:
    """Note the first comparison whose answer this call may not tell."""
    code = function.__code__.co_consts[-1]  # its own, see below
    written = {name for _, step in steps_of(code) if "STORE_" in step.opname for name in names_at(step)}
    given = dict(zip(code.co_varnames[: code.co_argcount], args, strict=False)) | kwargs
    for line, names in compared:
        told = len(names) == 2 and all(name in given and name not in written for name in names)
        if not told or may_be_one(*(given[name] for name in names)):
            found[f"{code.co_filename}:{line}"] = None
            return


def _note_calls(
    function: types.FunctionType,
    note: Callable[[tuple[Any, ...], dict[str, Any]], Any],
    undo: contextlib.ExitStack,
) -> None:
    own, space = function.__code__, function.__globals__
    same = types.FunctionType(own, space, function.__name__, function.__defaults__, function.__closure__)
    same.__kwdefaults__ = function.__kwdefaults__

    def called(*args: Any, **kwargs: Any) -> Any:
        note(args, kwargs)
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
    consts, free = (*_CALLS.co_consts, own), own.co_freevars  # as many as the closure has, `super()`'s say
    function.__code__ = _CALLS.replace(co_names=(name,), co_consts=consts, co_freevars=free, **shown)


_CALLS = compile("def f(*args, **kwargs): return called(*args, **kwargs)", "", "exec").co_consts[0]


@functools.lru_cache(1 << 14)
def comparisons_in(code: types.CodeType) -> tuple[Comparison, ...]:
    """List where code compares two local values by `is`: the line, and both names where they have such.

    What a call gives counts where it may be what it is given (`x.float() is x`).
    """
    if _IS not in code.co_code[::2]:
        return ()
    found, before = list[Comparison](), list[dis.Instruction]()
    for line, step in steps_of(code):
        if step.opcode == _IS and (names := _compared(before)) is not None:
            found.append((line, names))
        before = [] if ends_statement(step) else [*before, step]
    return tuple(found)


def _compared(before: list[dis.Instruction]) -> tuple[str, ...] | None:
    """Return the names of two local values that are compared, none for a call's; None: other values."""
    names = [name for step in before[-2:] for name in _loaded(step)][-2:]
    if before and _loaded(before[-1]) and len(names) == 2:
        return tuple(names) if "self" not in names else None
    of_call = [step for step in before[-2:] if step.opname.startswith("CALL")]
    local = bool(before) and (before[-1] in of_call or bool(_loaded(before[-1])))
    return () if of_call and local and _may_pass_on(before) else None


_NO_CALLS = {"get", "dtype", "device", "layout", "shape", "ndim", "__class__"}


def _may_pass_on(steps: list[dis.Instruction]) -> bool:
    """Is what is called there a layer or a method of a local value, or a function that may pass it on?"""
    if any(step.opname == "LOAD_GLOBAL" and step.argval == "type" for step in steps):
        return False
    of_local = any(
        _loaded(a) and b.opname in ("LOAD_ATTR", "LOAD_METHOD") and b.argval not in _NO_CALLS
        for a, b in itertools.pairwise(steps)
    )
    return of_local or any(isinstance(step.argval, str) and is_itself(step.argval) for step in steps)


def _loaded(step: dis.Instruction) -> tuple[str, ...]:
    """Return the local names that an instruction loads."""
    if not step.opname.startswith(_LOCAL):
        return ()
    names = names_at(step)
    return names[-1:] if step.opname.startswith("STORE") else names


def names_at(step: dis.Instruction) -> tuple[str, ...]:
    """Return the names that an instruction is about: newer versions of Python load two at once."""
    return step.argval if isinstance(step.argval, tuple) else (str(step.argval),)


@contextlib.contextmanager
def refused_ids(
    stands_in: Callable[[Any], bool], functions: Iterable[types.FunctionType] = ()
) -> Iterator[None]:
    """Refuse `id(x)` and `operator.is_(x, y)` of stand-ins in a model's code.

    functions: in whose modules `is_` may stand by itself.
    """
    here, before = this_thread_only(), builtins.id

    def asked(x: Any) -> int:
        if stands_in(x) and here() and is_users(sys._getframe(1).f_code.co_filename):
            raise NotImplementedError("the code asks a value for its id, which no graph holds")
        return before(x)

    def compared(of: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
        def compare(a: Any, b: Any) -> bool:
            unknown = a is not None and b is not None and (stands_in(a) or stands_in(b))
            if unknown and here() and is_users(sys._getframe(1).f_code.co_filename):
                raise NotImplementedError("the code asks by `operator.is_` whether two values are one")
            return of(a, b)

        return compare

    with contextlib.ExitStack() as patches:
        patches.callback(setattr, builtins, "id", before)
        builtins.id = asked
        asking = {before(of): (of, compared(of)) for of in (operator.is_, operator.is_not)}
        spaces = [vars(operator), *(f.__globals__ for f in functions)]
        for space in {before(space): space for space in spaces}.values():
            for name, value in [*space.items()]:
                own, other = asking.get(before(value), (None, None))
                if own is not None:
                    patches.callback(space.__setitem__, name, own)
                    space[name] = other
        yield
