"""What ops make of a factor: `sqrt(4 * x)` is `2 * sqrt(x)`, and a sum of multiples is a multiple of the sum.

A tensor that grows with the number of elements that it was summed over does so by a power; these ops
change that power, or leave it.
"""

from __future__ import annotations

from fxprune.rules.multiples import PRODUCTS, QUOTIENTS

__all__ = ["CONSTANT", "KEEPING", "POWERS", "PRODUCTS", "QUOTIENTS", "SUMS", "power_of"]

# What is the same in every element.
CONSTANT = frozenset({"ones", "new_ones", "ones_like", "full", "new_full", "full_like"})
# A factor of all operands is one of the result; a number beside them is small, as an epsilon is.
SUMS = frozenset(
    {
        *("add", "sub", "rsub", "subtract", "where", "maximum", "minimum", "clamp", "clip", "clamp_min"),
        *("cat", "concat", "concatenate", "stack"),
    }
)
KEEPING = frozenset(
    {"abs", "absolute", "neg", "negative", "pos", "positive", "nan_to_num", "float", "double"}
)
POWERS = {"sqrt": 0.5, "rsqrt": -0.5, "square": 2.0, "reciprocal": -1.0}


def power_of(op: str, exponent: object) -> float | None:
    """Return the power that an op raises its operand to; None where it is no power that is known."""
    if op in ("pow", "float_power"):
        return float(exponent) if isinstance(exponent, (int, float)) else None
    return POWERS.get(op)
