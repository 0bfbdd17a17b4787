"""Hold some calibration samples out: what is solved from the others is chosen by these.

Where samples are few, the others are joined to more: their moments say more of what layers read.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fxprune.analysis.analysis import Analysis
from fxprune.choose.importance.data import Batch, batches_of, few_at_once
from fxprune.choose.importance.joined import joined

__all__ = ["Split", "split", "split_data"]

HELD_OUT = 5  # one sample in so many


@dataclass(frozen=True)
class Split:
    """Calibration batches: what is solved from, and what is held out to choose by.

    joined: made of what is solved from, see `joined`; to solve from as well.
    """

    seen: tuple[Batch, ...]
    held: tuple[Batch, ...]
    joined: tuple[Batch, ...] = ()

    @property
    def given(self) -> tuple[Batch, ...]:
        return (*self.seen, *self.held)

    @property
    def all(self) -> tuple[Batch, ...]:
        """What is solved from, and then what is held out."""
        return (*self.joined, *self.given)


def split_data(data: Iterable[Any] | None, analysis: Analysis, criterion: str, *, join: bool = True) -> Split:
    """Read every batch of `data`, hold samples out, and join the others to more where they are few.

    Raises:
        DataError: as `batches_of` does.
    """
    batches = few_at_once(batches_of(data, analysis, criterion), analysis)
    found = split(batches, whole=analysis.captured.fixed_batch)
    samples = sum(batch.size for batch in found.given)
    return replace(found, joined=tuple(joined(found.seen, samples))) if join else found


def split(batches: Sequence[Batch], *, whole: bool) -> Split:
    """Hold out every fifth sample; whole batches where they can't be cut."""
    seen: list[Batch] = []
    held: list[Batch] = []
    count = 0
    for batch in batches:
        if whole:
            (held if count % HELD_OUT == HELD_OUT - 1 else seen).append(batch)
            count += 1
            continue
        at = [(count + i) % HELD_OUT == HELD_OUT - 1 for i in range(batch.size)]
        count += batch.size
        for parts, chosen in ((seen, False), (held, True)):
            if rows := [i for i, is_held in enumerate(at) if is_held is chosen]:
                parts.append(batch.taken(rows))
    if seen and not held and len(seen) > 1:
        held = [seen.pop()]
    return Split(tuple(seen), tuple(held))
