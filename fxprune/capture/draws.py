"""Numbers that a model's code draws from Python's and NumPy's generators: set to one end of their range.

`if random.random() < 0.05` takes the same way in most calls; at the ends it takes both.
"""

from __future__ import annotations

import contextlib
import random
import sys
import types
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any

from fxprune.capture.clocks import another_time
from fxprune.graph.code_names import attribute_of, names_of
from fxprune.graph.process_lock import this_thread_only

__all__ = ["other_chances"]

_ENDS = (0.0, 1 - 2**-53)  # of the half-open range


def other_chances(functions: Iterable[types.FunctionType]) -> list[AbstractContextManager[None]]:
    """Return contexts in which some functions, and what they call, read and draw other numbers."""
    functions = [*functions]
    return [another_time(functions), *(_drawn_at(functions, end) for end in _ENDS)]


@contextlib.contextmanager
def _drawn_at(functions: Iterable[types.FunctionType], end: float) -> Iterator[None]:
    """Let single numbers that the global generators give lie at one end."""
    numpy = sys.modules.get("numpy")
    spaces = [vars(random), *([vars(numpy.random)] if numpy else [])]
    fixed: dict[int, Any] = {}
    for space in spaces:
        for name in ("random", "random_sample", "rand"):
            if name in space and callable(space[name]):
                fixed[id(space[name])] = _at(space[name], end)
        if "uniform" in space:
            fixed[id(space["uniform"])] = _between(space["uniform"], end)
    spaces += [f.__globals__ for f in functions if _names_a_draw(f, fixed)]
    with contextlib.ExitStack() as undo:
        for space in spaces:
            for name, value in [*space.items()]:
                if id(value) in fixed:
                    space[name] = fixed[id(value)]
                    undo.callback(space.__setitem__, name, value)
        yield


def _names_a_draw(function: types.FunctionType, fixed: dict[int, Any]) -> bool:
    space = function.__globals__
    return any(id(space.get(name)) in fixed for name in names_of(function.__code__))


def _at(draw: Callable[..., Any], end: float) -> Callable[..., Any]:
    here = this_thread_only()

    def drawn(*size: Any, **options: Any) -> Any:
        number = draw(*size, **options)
        return end if here() and attribute_of(number, "shape") is None else number

    return drawn


def _between(draw: Callable[..., Any], end: float) -> Callable[..., Any]:
    here = this_thread_only()

    def drawn(low: float = 0.0, high: float = 1.0, *size: Any, **options: Any) -> Any:
        number = draw(low, high, *size, **options)
        single = here() and attribute_of(number, "shape") is None
        return low + (high - low) * end if single else number

    return drawn
