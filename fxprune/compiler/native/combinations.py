"""In which order numbers of a model's code are tried together."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

from fxprune.compiler.native.proposals import Options
from fxprune.compiler.native.spellings import SpelledSlot
from fxprune.result.own_calls import FullWidth

__all__ = ["COMBINATIONS", "choices", "in_order"]

COMBINATIONS = 4096  # of which those that change least are tried; of more, only one and two changes


def in_order(options: Options, now: list[int], path: str) -> Iterator[tuple[int, ...]]:
    """List what stands there, calls of the original's own code at its width, and every other choice."""
    others = choices(options, now)
    yield next(others)
    yield from _at_full_width(options, now, path)
    yield from others


def _at_full_width(options: Options, now: list[int], path: str) -> Iterator[tuple[int, ...]]:
    """Let a module's code say what it always said, but for one call, of whose result parts are taken.

    As many numbers change for that as the module has: by few changes it is found late, or never.
    """
    for i, (slot, _) in enumerate(options):
        for number, way in enumerate(slot.ways if isinstance(slot, SpelledSlot) else (), 1):
            if isinstance(way, FullWidth):
                own = [(news[-1] if s.path == path else n) for (s, news), n in zip(options, now, strict=True)]
                yield (*own[:i], number, *own[i + 1 :])


def choices(options: Options, now: list[int]) -> Iterator[tuple[int, ...]]:
    """List every combination, those that change least of what stands there first, state before code."""
    ranked = [[n, *(v for v in values if v != n)] for n, (_, values) in zip(now, options, strict=True)]
    in_code = [slot.held == 0 for slot, _ in options]
    is_few = math.prod(map(len, ranked)) <= COMBINATIONS
    combinations = itertools.product(*ranked) if is_few else _few_changes(ranked, in_code)

    def cost(combination: tuple[int, ...]) -> tuple[int, int]:
        changed = [a != b for a, b in zip(combination, now, strict=True)]
        return sum(changed), sum(c and spelled for c, spelled in zip(changed, in_code, strict=True))

    yield from sorted(itertools.islice(combinations, COMBINATIONS), key=cost)


def _few_changes(ranked: list[list[int]], in_code: list[bool]) -> Iterator[tuple[int, ...]]:
    """List one and two changes of many numbers, and all of state at once."""
    now = [values[0] for values in ranked]
    yield tuple(now)
    yield tuple(v[0 if c else min(1, len(v) - 1)] for v, c in zip(ranked, in_code, strict=True))
    places = [(i, v) for i, values in enumerate(ranked) for v in values[1:]]
    for count in (1, 2):
        for some in itertools.combinations(places, count):
            new = list(now)
            for i, v in some:
                new[i] = v
            yield tuple(new)
