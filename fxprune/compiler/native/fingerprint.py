"""Tell tensors apart by little: enough to see that two runs computed the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fxprune.graph.tensors import is_float

__all__ = ["Fingerprint", "Prints", "is_same", "prints_match", "prints_of"]

TOLERANCE = 1e-8  # relative, in float64
SAMPLES = 64  # elements that are compared one by one
LARGEST = 1e30  # beyond: what masks write for -inf, which differs with the precision


@dataclass(frozen=True)
class Fingerprint:
    """Enough of a tensor to tell it from another: its shape, its sums, and some of its elements.

    sums: of the elements, and of their absolute values: float64 [2].
    samples: float64 [SAMPLES], evenly spaced.
    """

    shape: tuple[int, ...]
    sums: Tensor
    samples: Tensor

    @staticmethod
    def of(t: Tensor) -> Fingerprint:
        flat = t.detach().reshape(-1)
        flat = torch.view_as_real(flat).reshape(-1) if flat.is_complex() else flat.double()
        flat = flat.clamp(-LARGEST, LARGEST)
        picked = torch.linspace(0, max(len(flat) - 1, 0), SAMPLES, dtype=torch.float64).long()
        samples = flat[picked.to(flat.device)] if len(flat) else flat
        return Fingerprint(tuple(t.shape), torch.stack([flat.sum(), flat.abs().sum()]), samples)

    def matches(self, other: Fingerprint) -> bool:
        if self.shape != other.shape:
            return False
        scale = max(float(other.sums[1]), 1e-30)
        if not bool(((self.sums - other.sums).abs() <= TOLERANCE * scale).all()):
            return bool(torch.equal(self.sums, other.sums))  # no: where a sum is NaN, it equals nothing
        largest = float(other.samples.abs().max()) if len(other.samples) else 0.0
        return bool(torch.allclose(self.samples, other.samples, rtol=TOLERANCE, atol=TOLERANCE * largest))


Prints = tuple[Fingerprint, ...]


def prints_of(value: Any) -> Prints:
    """Take the fingerprints of every tensor in a nest."""
    return tuple(Fingerprint.of(t) for t in pytree.tree_leaves(value) if isinstance(t, Tensor))


def prints_match(got: Prints, wanted: Prints) -> bool:
    return len(got) == len(wanted) and all(a.matches(b) for a, b in zip(got, wanted, strict=True))


def is_same(got: list[Tensor], wanted: list[Tensor]) -> bool:
    """Are all tensors of two results equal, to 1e-8 of the largest; to the last bit, if not all is finite?"""
    if [t.shape for t in got] != [t.shape for t in wanted]:
        return False
    for x, y in zip(got, wanted, strict=True):
        if is_float(x) != is_float(y) or x.is_complex() != y.is_complex():
            return False
        if not is_float(y) or not bool(y.isfinite().all()):
            if not torch.equal(x.nan_to_num(), y.nan_to_num()):
                return False
        elif y.numel() and not bool((x - y).abs().max() <= TOLERANCE * y.abs().max().clamp_min(1e-30)):
            return False
    return True
