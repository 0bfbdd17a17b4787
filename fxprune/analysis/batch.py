"""Find the batch among a graph's axes."""

from __future__ import annotations

from fxprune.analysis.analysis import Analysis
from fxprune.axes import Atom

__all__ = ["batch_size_of", "is_batch"]


def batch_size_of(analysis: Analysis) -> int:
    """The stand-in for the batch size in the analysis's axes."""
    first = next(n for n in analysis.module.graph.nodes if n.op == "placeholder")
    return analysis.axes[first][0][0].size


def is_batch(a: Atom, batch: int) -> bool:
    """Does an atom count samples, `batch` being the stand-in for their number?"""
    return a.fixed is not None and a.size == batch
