"""Cut what is collected over the data into waves: a run each, whose sums can be held at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

__all__ = ["in_waves"]

T = TypeVar("T")


def in_waves(items: Iterable[T], size: Callable[[T], int], most: int) -> list[list[T]]:
    """Cut items, in order, into runs of `most` numbers at most in all; one that is larger is a run alone."""
    waves: list[list[T]] = []
    held = 0
    for item in items:
        if not waves or held + size(item) > most:
            waves.append([])
            held = 0
        waves[-1].append(item)
        held += size(item)
    return waves
