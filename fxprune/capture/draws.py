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

from fxprune.capture.clocks import swapped
from fxprune.graph.code_names import attribute_of, names_of
from fxprune.graph.process_lock import this_thread_only

__all__ = ["drawn_at_ends"]

_ENDS = (0.0, 1 - 1e-9)  # of the half-open range
_MOST = 64  # draws at an end: code may draw until a number suits it


def drawn_at_ends(functions: Iterable[types.FunctionType]) -> list[AbstractContextManager[None]]:
    """Return contexts in which some functions, and what they call, draw numbers at an end of their range."""
    functions = [*functions]
    return [_drawn_at(functions, end) for end in _ENDS]


class _AtAnEnd(random.Random):
    """Draws numbers at one end of their range; after many, Python's own."""

    def __init__(self, end: float) -> None:
        super().__init__(0)
        self._end, self._left = end, _MOST

    def random(self) -> float:
        """Return the end."""
        self._left -= 1
        return self._end if self._left > 0 else super().random()


@contextlib.contextmanager
def _drawn_at(functions: Iterable[types.FunctionType], end: float) -> Iterator[None]:
    """Let single numbers that the global generators give lie at one end."""
    fixed: dict[int, Any] = {}
    at_end = _AtAnEnd(end)
    for name, draw in vars(random).items():
        if attribute_of(draw, "__self__") is random._inst and name not in _STATE:
            fixed[id(draw)] = _in_this_thread(draw, getattr(at_end, name))
    spaces = [vars(random)]
    if (numpy := sys.modules.get("numpy")) is not None:
        spaces.append(vars(numpy.random))
        for name in _OF_NUMPY:
            draw = vars(numpy.random)[name]
            fixed[id(draw)] = _in_this_thread(draw, _single(draw, at_end.random))
    spaces += [f.__globals__ for f in functions if _names_a_draw(f, fixed)]
    with swapped(spaces, fixed):
        yield


_STATE = {"seed", "getstate", "setstate"}
_OF_NUMPY = ("random", "random_sample", "rand", "uniform")


def _names_a_draw(function: types.FunctionType, fixed: dict[int, Any]) -> bool:
    space = function.__globals__
    return any(id(space.get(name)) in fixed for name in names_of(function.__code__))


def _in_this_thread(draw: Callable[..., Any], other: Callable[..., Any]) -> Callable[..., Any]:
    here = this_thread_only()
    return lambda *args, **options: (other if here() else draw)(*args, **options)


def _single(draw: Callable[..., Any], at_end: Callable[..., Any]) -> Callable[..., Any]:
    """Draw arrays as NumPy does, and single numbers at the end."""

    def drawn(*args: Any, **options: Any) -> Any:
        number = draw(*args, **options)
        if not isinstance(number, float):
            return number
        if draw.__name__ != "uniform":
            return at_end()
        given = dict(zip(("low", "high"), args, strict=False)) | options
        low, high = given.get("low", 0.0), given.get("high", 1.0)
        return low + (high - low) * at_end()

    return drawn
