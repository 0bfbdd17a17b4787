"""Write the law of an op: how its result follows from its tensors, where it is linear in them.

    ... i, o i; o -> ... o          a product of two tensors summed over `i`, plus a third one along `o`
    b n c, 1 n 1 -> b n c           a factor that does not have `c`
    b n c -> b n / b n              over `c` as a sum; linear, but not along what follows the stroke

A word is a dimension's name, `1` one of size one, `...` all that are left, aligned to the right.  `,` joins
factors, `;` summands, `()` is a number, `[]` a tensor without dimensions.  Tensors come in the order of the
rule's arguments; a single one that is named twice is multiplied by itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fxprune.rules.axes import ONE
from fxprune.rules.registry import Axes, Typed

__all__ = ["LAYOUT", "dims_named", "product_law", "reduced_law", "sum_law"]

# The law of an op that moves, copies, weighs or averages elements, but never across an axis that both
# sides have: what it makes of a sum is the sum of what it makes of each.
LAYOUT = "layout"


def dims_named(axes: Axes, ndim: int | None = None) -> str:
    """Name dimensions by their places in a result of `ndim`, aligned to the right."""
    first = (len(axes) if ndim is None else ndim) - len(axes)
    words = ["1" if axis == ONE else f"d{first + i}" for i, axis in enumerate(axes)]
    return " ".join(words) or "[]"


def _rank(operands: Iterable[object]) -> int:
    return max((t.ndim for t in operands if isinstance(t, Typed)), default=0)


def sum_law(operands: Sequence[object], out: Axes) -> str:
    """Write the sum of tensors and numbers that broadcast; a zero adds nothing."""
    ndim = _rank(operands)
    terms = [dims_named(t.axes, ndim) if isinstance(t, Typed) else "()" for t in operands if not _is_zero(t)]
    return "; ".join(terms) + " -> " + dims_named(out)


def product_law(operands: Sequence[object], out: Axes, *summands: object) -> str:
    """Write the product of tensors and numbers that broadcast, plus what is added to it."""
    ndim = _rank(operands)
    factors = ", ".join(dims_named(t.axes, ndim) for t in operands if isinstance(t, Typed))
    terms = [dims_named(t.axes, ndim) if isinstance(t, Typed) else "()" for t in summands if not _is_zero(t)]
    return "; ".join([factors, *terms]) + " -> " + dims_named(out)


def reduced_law(input: Typed, gone: Sequence[int], *, keepdim: bool = False, linear: bool = True) -> str:
    """Write a reduction over some dimensions; one that is not linear goes element by element along others."""
    names = dims_named(input.axes).split() if input.ndim else []
    kept = " ".join("1" if i in gone else n for i, n in enumerate(names) if keepdim or i not in gone)
    return f"{' '.join(names) or '[]'} -> {kept or '[]'}" + ("" if linear else f" / {kept}")


def _is_zero(value: object) -> bool:
    return value is None or (isinstance(value, (int, float)) and value == 0)
