"""Keep the highest-scored elements."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from fxprune.analysis.analysis import Analysis, Group
from fxprune.choose.importance.score import Scores
from fxprune.result.selection import Selection

__all__ = ["best_of", "select"]


def select(analysis: Analysis, scores: Scores, counts: Mapping[Group, int]) -> Selection:
    """Keep the highest-scored of each group, as many as `counts` says; ties keep the first.

    What has a score of -inf is gone already, and is never kept.
    """
    kept = {}
    for group, count in counts.items():
        left = min(count, int(np.isfinite(scores[group]).sum(-1).min()))
        if left < group.size:
            kept[group] = torch.from_numpy(best_of(scores[group], left))
    return Selection.of(analysis, kept)


def best_of(scores: np.ndarray, count: int) -> np.ndarray:
    """Return the positions of the highest scores along the last dimension, sorted; ties keep the first."""
    order = np.argsort(-scores, axis=-1, kind="stable")[..., :count]
    return np.sort(order, axis=-1)
