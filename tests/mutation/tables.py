"""Mutants of tables: an entry that is left out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fxprune import DEFAULT_RULES
from fxprune.rules.modules import NATIVE


@dataclass(frozen=True)
class MaskedMutant:
    """The certificate takes a plain statistic where it should take one over kept elements."""

    op: str

    def __str__(self) -> str:
        return f"rules/masked.py: {self.op} over all elements"

    def apply(self) -> None:
        known = DEFAULT_RULES._rules[self.op]
        masked = known.masked
        assert masked is not None

        def unmasked(mask: Tensor, **given: Any) -> Any:
            return masked(mask=torch.ones_like(mask), **given)

        DEFAULT_RULES._rules[self.op] = replace(known, masked=unmasked)


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
    rules = DEFAULT_RULES._rules
    yield from (MaskedMutant(op) for op in sorted(rules) if rules[op].masked is not None)
    for cls, entry in NATIVE.items():
        if not cls.__name__.startswith("NonDynamically"):  # shares the entry of Linear
            yield from (WidthMutant(cls.__name__, attribute) for attribute in entry.widths)
