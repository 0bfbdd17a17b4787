"""Bring the scores of groups to one scale: the divergence that removing some of them causes.

Estimates from moments take the places of a sample to err independently.  How far they don't depends on the
layer, and masks of some samples tell: `masked_scale`.

Estimates are to second order, each element and each group on its own.  How far they are off depends on the
kind: errors in a residual stream add up from layer to layer, those of hidden channels average out; and what
goes together costs more than what goes alone.  So two shares of all groups of a kind are removed, for a few
samples, by the very steps that prune the model, and the divergence is measured: what a group loses counts as
a power of what its scores say, scale and power as measured.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from fxprune.analysis.analysis import Analysis, Group
from fxprune.choose.importance.data import batches_of, items_of
from fxprune.choose.importance.scores import Scores
from fxprune.graph.nests import Value

__all__ = ["masked_scale", "measured_scale", "some_of"]

SAMPLES = 64  # that divergences are measured on, at least, where there are so many
SHARES = (0.1, 0.3)  # that are removed
STEEPEST = 2.0  # power: errors that all point the same way


def masked_scale(scores: Scores, alone: Scores, masked: Scores) -> Scores:
    """Return the scores of every group times the median of what masks say over what moments say.

    Args:
        alone: what the moments behind the scores say of removing each element alone.
        masked: the same by masks, as of `kl`.
    """
    found = dict(scores)
    for group, said in alone.items():
        ratios = np.divide(masked[group].clip(0), said, out=np.zeros(said.shape), where=said > 0)
        if (ratio := float(np.median(ratios))) > 0:
            found[group] = scores[group] * ratio
    return found


def measured_scale(
    groups: Sequence[Group], scores: Scores, divergence: Callable[[dict[Group, int]], float]
) -> Scores:
    """Return the scores in units of measured divergence, in the same order within each group.

    Args:
        divergence: KL for the mean sample where groups keep so many elements, and all others everything.
    """
    kinds: dict[str, list[Group]] = defaultdict(list)
    for group in groups:
        kinds[group.role].append(group)
    if len(kinds) < 2:
        return scores
    found = dict(scores)
    for members in kinds.values():
        losses = {group: _losses(scores[group]) for group in members if group.size > 1}
        points: list[tuple[np.ndarray, float]] = []
        for share in SHARES:
            counts = {group: max(1, round(group.size * (1 - share))) for group in losses}
            said = [losses[g][g.size - count - 1] for g, count in counts.items() if count < g.size]
            measured = divergence(counts) if sum(said) > 0 else 0.0
            if measured > 0 and np.isfinite(measured):
                points.append((np.array(said), measured))
        if points:
            power = _power(points)
            lost_last, measured = points[-1]
            scale = measured / float((lost_last**power).sum())
            found |= {g: _marginal(scores[g], lost, power) * scale for g, lost in losses.items()}
    return found


def _losses(scores: np.ndarray) -> np.ndarray:
    """Sum up what the scores say of the lowest 1, 2, .. n elements, of all heads together: [n]."""
    return np.cumsum(np.sort(scores, -1).reshape(-1, scores.shape[-1]).sum(0).clip(0))


def _power(points: Sequence[tuple[np.ndarray, float]]) -> float:
    """Return the power of the losses that grows as the divergences do; 1 where one was measured."""
    if len(points) < 2 or points[0][0].sum() >= points[1][0].sum():
        return 1.0
    grown = np.log(points[1][1] / points[0][1]) / np.log(points[1][0].sum() / points[0][0].sum())
    return float(np.clip(grown, 1.0, STEEPEST))


def _marginal(scores: np.ndarray, losses: np.ndarray, power: float) -> np.ndarray:
    """Return what each element adds to the power of its group's losses, each head its share."""
    added = np.diff(losses**power, prepend=0.0)
    plain = np.diff(losses, prepend=0.0)
    factor = np.divide(added, plain, out=np.zeros_like(added), where=plain > 0)
    factor = np.maximum.accumulate(factor)  # (it grows; rounding does not)
    ranks = np.argsort(np.argsort(scores, -1, kind="stable"), -1, kind="stable")
    return scores * factor[ranks]


def some_of(data: Iterable[Value], analysis: Analysis) -> list[Value]:
    """Return the first batches of calibration data, with `SAMPLES` samples or a batch more."""
    taken, samples = [], 0
    for batch in items_of(data):
        taken.append(batch)
        samples += batches_of([batch], analysis, "kl")[0].size
        if samples >= SAMPLES:
            break
    return taken
