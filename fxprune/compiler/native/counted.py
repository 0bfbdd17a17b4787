"""Find the numbers that modules hold, and that count what a statistic of theirs runs over.

`self.scale = dim**0.5` of a norm by hand: `F.normalize(x, dim=-1) * self.scale` runs over what is kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from torch import nn

from fxprune.compiler.native.sizes import Sizes
from fxprune.result.own_code import Slot

__all__ = ["numbers_that_count"]


def numbers_that_count(model: nn.Module, sizes: Mapping[str, Sizes]) -> Iterator[tuple[Slot, float]]:
    """List the numbers, each with what it is of the elements that are kept."""
    for path, module in model.named_modules():
        for old, new in sizes[path].counts.items():
            held = [n for n, v in vars(module).items() if type(v) is float and math.isclose(v, old)]
            if len(held) == 1:  # of several, one may be something else
                yield Slot(path, (held[0],)), new
