"""Compare what two modules return: the largest error relative to the largest element of its order.

What fills masked places (-1e9, the least of a dtype) is far from all else, and no measure of that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fxprune.errors import CertificateError
from fxprune.graph.tensors import in_float64

__all__ = ["Compared", "compact", "compare", "differ"]

# Numbers from HUGE on are of an order of their own, where none of several is within a factor APART below: of
# normal ones the few smallest may be, by chance, and rounding is no less for them.
HUGE, APART, SEVERAL = 1e4, 1e3, 3
FILLING = 1e8  # larger numbers fill places, and nothing is computed of them


@dataclass(frozen=True)
class Compared:
    """What a comparison of outputs found.

    error: the largest relative error; inf where one of two numbers alone is finite, or a wanted one is NaN.
    seen: there was a number other than zero to compare.
    defined: no wanted output holds NaN.
    """

    error: float
    seen: bool
    defined: bool


def compact(t: Tensor, kept: Sequence[Any]) -> Tensor:
    """Select the kept positions (None: all) along each dimension."""
    for dim, positions in enumerate(kept):
        if positions is not None:
            t = t.index_select(dim, torch.as_tensor(positions, device=t.device))
    return t


def compare(wanted: Sequence[Tensor], got: Sequence[Tensor]) -> Compared:
    """Compare output by output.

    Raises:
        CertificateError: they differ in number or shape.
    """
    if len(wanted) != len(got):
        raise CertificateError(
            f"{len(got)} outputs are tensors of numbers, of the masked original {len(wanted)}"
        )
    errors = [_error(a, b) for a, b in zip(wanted, got, strict=True)]
    finite = [a[a.isfinite()] for a in wanted]
    return Compared(
        max(errors, default=0.0),
        any(bool(a.any()) for a in finite),
        not any(bool(a.isnan().any()) for a in wanted),
    )


def _error(wanted: Tensor, got: Tensor) -> float:
    if wanted.shape != got.shape:
        raise CertificateError(
            f"an output has shape {tuple(got.shape)}, the masked original's {tuple(wanted.shape)}"
        )
    wanted, got = in_float64(wanted), in_float64(got)
    finite = wanted.isfinite()
    if bool((finite != got.isfinite()).any()):
        return float("inf")
    if not bool(finite.all()):  # a mask's -inf is what it is; NaN is nothing to compare
        if bool(wanted.isnan().any()) or not torch.equal(wanted[~finite], got[~finite]):
            return float("inf")
        wanted, got = wanted[finite], got[finite]
    if wanted.numel() == 0:
        return 0.0
    off, sizes = (wanted - got).abs(), wanted.abs()
    tiny = torch.finfo(torch.float64).tiny
    largest = float(sizes.max())
    # What is zero but for rounding is so at the scale of numbers it may be computed from.
    least = max(tiny, 1e-7 * largest if largest < FILLING else 0.0)
    return max(float(off[part].max() / sizes[part].max().clamp_min(least)) for part in _orders(sizes))


def _orders(sizes: Tensor) -> list[Tensor]:
    """Split numbers where huge ones stand far apart from all smaller ones: a mask of each part."""
    everything = torch.ones_like(sizes, dtype=torch.bool)
    if not bool(sizes.max() >= HUGE):
        return [everything]
    distinct = sizes[sizes > 0].unique()
    lower, upper = distinct[SEVERAL - 1 : -1], distinct[SEVERAL:]
    bounds = upper[(upper >= HUGE) & (upper / lower >= APART)].tolist()
    ends = zip([0.0, *bounds], [*bounds, float("inf")], strict=True)
    return [part for low, high in ends if bool((part := (low <= sizes) & (sizes < high)).any())]


def differ(one: Sequence[Tensor], other: Sequence[Tensor]) -> bool:
    """Return whether any number of two outputs differs by more than rounding."""
    for a, b in zip(one, other, strict=True):
        if a.shape != b.shape:
            return True
        both = a.isfinite() & b.isfinite()
        if not bool(both.any()):
            continue
        a, b = in_float64(a[both]), in_float64(b[both])
        off, sizes = (a - b).abs(), torch.maximum(a.abs(), b.abs())
        if any(bool(off[part].max() > 1e-12 * sizes[part].max()) for part in _orders(sizes)):
            return True
    return False
