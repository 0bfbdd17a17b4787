"""Mutants of tables: an entry that is left out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fxprune.rules.masked import MASKED
from fxprune.rules.modules import NATIVE


@dataclass(frozen=True)
class MaskedMutant:
    """The certificate takes a plain statistic where it should take one over kept elements."""

    op: str

    def __str__(self) -> str:
        return f"masked_statistics.py: {self.op} over all elements"

    def apply(self) -> None:
        del MASKED[self.op]


@dataclass(frozen=True)
class WidthMutant:
    """A layer's attribute is not kept in step with its weights."""

    layer: str
    attribute: str

    def __str__(self) -> str:
        return f"rules/modules.py: {self.layer}.{self.attribute} stays"

    def apply(self) -> None:
        (entry,) = {id(n): n for cls, n in NATIVE.items() if cls.__name__ == self.layer}.values()
        del entry.widths[self.attribute]


def table_mutants() -> Iterator[MaskedMutant | WidthMutant]:
    yield from map(MaskedMutant, sorted(MASKED))
    for cls, entry in NATIVE.items():
        if not cls.__name__.startswith("NonDynamically"):  # shares the entry of Linear
            yield from (WidthMutant(cls.__name__, attribute) for attribute in entry.widths)
