"""Numbers that a model holds and that may be sizes of its input: rows of tables, and what modules keep.

Nothing is looked up by a name.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from torch import Tensor, nn

from fxprune.graph.nests import PLAIN

__all__ = ["EXTRA", "Size", "grids", "numbers", "pairs", "root", "rows", "unique"]

Size = tuple[int, int]  # height and width
T = TypeVar("T")

EXTRA = 6  # fewer tokens than this stand beside those of patches: class, distillation, registers
LARGEST = 2048
MOST = 48  # of the numbers that a model keeps
_NO_OBJECTS = frozenset({*PLAIN, dict, OrderedDict, set, list, tuple})  # a module has dozens


def rows(model: nn.Module) -> list[int]:
    """Count the rows of each table: [n, features] or [1, n, features]."""
    return unique(shape[0] for shape in _tables(model) if len(shape) == 2)


def grids(model: nn.Module, features: int | None = None) -> list[Size]:
    """Return patches down and across, of tables over both, and of tables with a square number of rows.

    features: only of tables whose rows are so wide; those of relative positions are not.
    """
    found: list[Size] = []
    for shape in _tables(model):
        if len(shape) == 3:
            found += [shape[1:]] if features in (None, shape[0]) else []
            found += [shape[:2]] if features in (None, shape[2]) else []
        elif len(shape) == 2 and features in (None, shape[1]):
            found += [(side, side) for extra in range(EXTRA) if (side := root(shape[0] - extra)) > 1]
    return [(h, w) for h, w in unique(found) if 1 < h <= LARGEST and 1 < w <= LARGEST]


def pairs(model: nn.Module) -> list[Size]:
    """Return pairs of whole numbers that modules keep."""
    kept = [v for m in model.modules() for v in _kept(m) if isinstance(v, (tuple, list)) and len(v) == 2]
    return unique((v[0], v[1]) for v in kept if all(map(_is_size, v)))[:MOST]


def numbers(model: nn.Module) -> list[int]:
    """Return whole numbers that modules of the model's own keep."""
    return unique(v for m in model.modules() if _is_own(m) for v in _kept(m) if _is_size(v))[:MOST]


def root(n: int) -> int:
    """Return the side of a square number, or 0."""
    side = math.isqrt(n) if n > 0 else 0
    return side if side * side == n else 0


def unique(values: Iterable[T]) -> list[T]:
    return list(dict.fromkeys(values))


def _tables(model: nn.Module) -> list[tuple[int, ...]]:
    """Return shapes of the parameters and buffers that modules of the model's own hold, and of embeddings.

    One of them may be a table of positions, with a row for each token; a leading 1 is left out.
    """
    found: list[tuple[int, ...]] = []
    for module in model.modules():
        if _is_own(module) or isinstance(module, nn.Embedding):
            held: list[Tensor | None] = [*module._parameters.values(), *module._buffers.values()]
            found += [tuple(t.shape) for t in held if t is not None]
    shapes = [s[1:] if len(s) > 2 and s[0] == 1 else s for s in found]
    return [s for s in unique(shapes) if len(s) in (2, 3) and s[0] > 1 and s[-1] > 1]


def _kept(module: nn.Module) -> Iterator[Any]:
    """Yield a module's attributes, and those of a configuration among them."""
    for value in vars(module).values():
        yield value
        if (
            type(value) not in _NO_OBJECTS
            and hasattr(value, "__dict__")
            and not isinstance(value, (nn.Module, Tensor, type))
        ):
            yield from vars(value).values()


def _is_own(module: nn.Module) -> bool:
    return not type(module).__module__.startswith("torch.nn")


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 < value <= LARGEST
