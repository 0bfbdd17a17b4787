"""Clocks that a model's code reads: set to another time, so that what follows from them shows."""

from __future__ import annotations

import contextlib
import datetime
import time
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from fxprune.graph.code_names import attribute_of, names_of
from fxprune.graph.process_lock import this_thread_only

__all__ = ["another_time", "swapped"]

_LATER = datetime.timedelta(days=1031, hours=5, minutes=17, seconds=43, microseconds=271_828)
_CLOCKS = ("time", "monotonic", "perf_counter", "process_time", "thread_time")


@contextlib.contextmanager
def another_time(functions: Iterable[types.FunctionType]) -> Iterator[None]:
    """Let some functions, and what they call, read clocks that are years ahead."""
    later: dict[int, Any] = _later_classes()
    for name in _CLOCKS:
        later[id(getattr(time, name))] = _ahead(getattr(time, name), _LATER.total_seconds())
        later[id(getattr(time, f"{name}_ns"))] = _ahead(
            getattr(time, f"{name}_ns"), int(_LATER.total_seconds() * 1e9)
        )
    spaces = [vars(time), vars(datetime), *(f.__globals__ for f in functions if _names_a_clock(f))]
    with swapped(spaces, later):
        yield


@contextlib.contextmanager
def swapped(spaces: Iterable[dict[str, Any]], others: Mapping[int, Any]) -> Iterator[None]:
    """Let names in some files' globals stand for other things, which are found by the ids of their own."""
    with contextlib.ExitStack() as undo:
        for space in {id(space): space for space in spaces}.values():
            for name, value in [*space.items()]:
                if id(value) in others:
                    space[name] = others[id(value)]
                    undo.callback(space.__setitem__, name, value)
        yield


def _names_a_clock(function: types.FunctionType) -> bool:
    space = function.__globals__
    named = (space.get(name) for name in names_of(function.__code__))
    return any(attribute_of(v, "__module__") in ("time", "datetime") for v in named if v is not None)


def _ahead(clock: Callable[[], Any], by: Any) -> Callable[[], Any]:
    here = this_thread_only()
    return lambda: clock() + by if here() else clock()


def _later_classes() -> dict[int, Any]:
    """Make classes of another time, and of another day, for this thread; in others they are Python's own."""
    here, moment, day = this_thread_only(), datetime.datetime, datetime.date

    class OfAll(type):
        """Made before or elsewhere, it is an instance too."""

        def __instancecheck__(cls, x: Any) -> bool:
            return isinstance(x, day if issubclass(cls, LaterDay) else moment)

    class Later(datetime.datetime, metaclass=OfAll):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> Any:
            return super().now(tz) + _LATER if here() else moment.now(tz)

        @classmethod
        def utcnow(cls) -> Any:
            return super().utcnow() + _LATER if here() else moment.utcnow()

    class LaterDay(datetime.date, metaclass=OfAll):
        @classmethod
        def today(cls) -> Any:
            return super().today() + _LATER if here() else day.today()

    return {id(moment): Later, id(day): LaterDay}
