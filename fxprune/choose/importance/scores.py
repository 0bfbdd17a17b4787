"""Scores: one number per element of each group."""

from __future__ import annotations

import numpy as np

from fxprune.analysis.analysis import Group
from fxprune.errors import ScoreError

__all__ = ["Scores", "check_scores", "shape_of"]

# For each group float64 [size], or [heads, size] where heads may choose for themselves.
Scores = dict[Group, np.ndarray]


def shape_of(group: Group) -> tuple[int, ...]:
    """Return a group's shape: [size], or [heads, size] where each head may keep other elements."""
    return (group.size,) if group.inside is None else (group.inside.size, group.size)


def check_scores(scores: Scores, groups: list[Group]) -> Scores:
    """Refuse scores that rank nothing: a group left out, of another shape, NaN or infinite.

    A group with a choice per head may come with one score per element for all heads.
    """
    checked: Scores = {}
    for group in groups:
        if group not in scores:
            raise ScoreError(f"{group.name}: the importance gives no scores for it")
        values, shape = np.asarray(scores[group], dtype=np.float64), shape_of(group)
        if values.shape == shape[-1:]:
            values = np.broadcast_to(values, shape)
        if values.shape != shape:
            raise ScoreError(f"{group.name}: scores of shape {values.shape}, not {shape}")
        if not np.isfinite(values).all():
            bad = int((~np.isfinite(values)).sum())
            raise ScoreError(f"{group.name}: {bad} of {values.size} scores are NaN or infinite")
        checked[group] = values
    return checked
