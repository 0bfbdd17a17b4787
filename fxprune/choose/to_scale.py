"""Bring the scores of every kind of group to one scale: the divergence that removing some of it causes.

Estimates are to second order, each group on its own, each token on its own.  How far they are off depends on
the kind: errors in a residual stream add up from layer to layer, those of hidden channels average out.  So a
share of all groups of a kind is removed, for a few samples, by the very steps that prune the model, and the
divergence is measured: scores of the kind are multiplied by what it was, over what they said.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from fxprune.analysis.analysis import Analysis, Group
from fxprune.choose.importance.data import batches_of
from fxprune.choose.importance.scores import Scores

__all__ = ["measured_scale", "some_of"]

SAMPLES = 64  # that divergences are measured on, at least, where there are so many
LEAST, MOST = 0.1, 0.3  # shares that are removed: what is asked for, within these


def measured_scale(
    groups: Sequence[Group], scores: Scores, ratio: float, divergence: Callable[[dict[Group, int]], float]
) -> Scores:
    """Return the scores, those of each role multiplied by one factor.

    Args:
        ratio: the share that is asked for.
        divergence: KL for the mean sample where groups keep so many elements, and all others everything.
    """
    kinds: dict[str, list[Group]] = defaultdict(list)
    for group in groups:
        kinds[group.role].append(group)
    if len(kinds) < 2:
        return scores
    share = min(max(ratio, LEAST), MOST)
    found = dict(scores)
    for members in kinds.values():
        counts = {group: max(1, round(group.size * (1 - share))) for group in members if group.size > 1}
        said = sum(float(np.sort(scores[g], -1)[..., : g.size - count].sum()) for g, count in counts.items())
        measured = divergence(counts) if said > 0 else 0.0
        if measured > 0 and np.isfinite(measured):
            found |= {group: scores[group] * (measured / said) for group in members}
    return found


def some_of(data: Iterable[Any], analysis: Analysis) -> list[Any]:
    """Return the first batches of calibration data, with `SAMPLES` samples or a batch more."""
    taken, samples = [], 0
    for batch in data:
        taken.append(batch)
        samples += batches_of([batch], analysis, "kl")[0].size
        if samples >= SAMPLES:
            break
    return taken
