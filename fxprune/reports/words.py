"""Axes in einops-like words: `(3 heads head_dim)`, `embed`, `[q | k]`."""

from __future__ import annotations

from fxprune.analysis import Analysis
from fxprune.axes import Axis, Sum

__all__ = ["axis_word"]


def axis_word(analysis: Analysis, axis: Axis) -> str:
    """What may shrink by its group's short name, what is whole by its size, what reaches the output so."""
    if axis.size == 1:
        return "1"
    if hasattr(axis, "parts"):
        words = [axis_word(analysis, part) for part in axis.parts]
        return f"[{' | '.join(words)}]" if isinstance(axis, Sum) else f"({' '.join(words)})"
    group = analysis.by_atom.get(axis)
    if group is not None and (group.frozen is None or group.role == "output"):
        return group.name.rpartition(".")[2]
    return str(axis.size)
