"""The KL divergence that removing each channel causes, to second order, for all groups in one run over data.

At the model itself the divergence between its predictions and a changed model's is zero, and so is its
slope; its curvature is the Fisher information.  So with F the mean of the squared derivative of log p(y | x)
by a channel's mask, y drawn from the model's own predictions, removing the channel costs about F / 2.
The exact quantity is that of UP-ViTs (https://arxiv.org/abs/2111.15127), see `exact`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from fxprune.analysis.analysis import Analysis, Group
from fxprune.choose.importance.bars import hidden
from fxprune.choose.importance.data import Batch, batches_of, few_at_once
from fxprune.choose.importance.exact import divergences
from fxprune.choose.importance.predictions import LogProbabilities
from fxprune.choose.importance.reading import Reading, reading_of
from fxprune.choose.importance.scores import Scores, shape_of
from fxprune.choose.importance.soft_masks import Masks, SoftMasked
from fxprune.errors import OptionError
from fxprune.graph.tensors import like_weights

__all__ = ["MEASURED", "kl", "ones", "passes_of"]

MEASURED = ("embed",)  # roles of groups that are measured on some samples: their removal is no small change


def kl(
    analysis: Analysis,
    groups: Sequence[Group],
    data: Iterable[Any] | None,
    *,
    log_probabilities: LogProbabilities | None = None,
    draws: int | None = None,
    measured: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Scores:
    """Compute half the Fisher information along each channel, averaged over samples and draws.

    A channel of a residual width is read by every branch, and its removal is far from a small change:
    there the samples that matter most are measured, as `kl_exact` does, and the estimate is the rest.

    Args:
        draws: targets drawn per sample; each costs one backward pass.  By default 2, and more for few
            samples (512 in all): the rank correlation with the exact divergence grows with their number.
        measured: samples on which residual widths are measured.  By default one in 40, at least 4; 0
            for none.
    """
    batches = few_at_once(batches_of(data, analysis, "kl"), analysis)
    samples = sum(batch.size for batch in batches)
    draws = draws or max(2, math.ceil(512 / samples))
    model, read = SoftMasked(analysis, groups), reading_of(analysis, log_probabilities)
    generator = torch.Generator().manual_seed(seed)
    passes = passes_of(model, groups, batches)
    shared = model.without_batch()
    if measured and analysis.captured.fixed_batch and batches[0].size > 1:
        raise OptionError(
            f"importance_options['measured'] measures samples one by one, and the model's code fixes the "
            f"batch at {batches[0].size}: leave it out"
        )
    count = _measured(analysis, samples) if measured is None else min(measured, samples)
    residual = [g for g in groups if g not in shared and g.role in MEASURED and count]
    totals = {group: torch.zeros(shape_of(group), dtype=torch.float64) for group in groups}
    single: dict[Group, list[Tensor]] = {group: [] for group in residual}  # estimates sample by sample
    bar = tqdm(
        passes,
        desc="importance",
        unit="batch",
        disable=hidden(progress),
    )
    for subset, batch in bar:
        for group, squares in _squared_slopes(model, subset, batch, read, draws, generator):
            totals[group] += squares.sum(0)
            if group in single:
                single[group].append(squares / (2 * draws))
    scores = {group: (total / (2 * draws * samples)).numpy() for group, total in totals.items()}
    for group in residual:
        measure = partial(
            divergences, analysis, [group], log_probabilities=log_probabilities, progress=progress
        )
        scores[group] = _with_measured(group, torch.cat(single[group]).numpy(), batches, count, measure)
    return scores


def passes_of(
    model: SoftMasked, groups: Sequence[Group], batches: Sequence[Batch]
) -> list[tuple[list[Group], Batch]]:
    """List the runs that derivatives by masks take: of which groups, on which samples.

    Where a group is used no sample is told from another, its derivative is taken sample by sample; of a
    whole batch where that can't be cut: its square is the sum of the samples' own in the mean, where their
    signs have nothing in common.
    """
    shared = model.without_batch()
    if not groups:
        return []
    if model.analysis.captured.fixed_batch or not shared:
        return [([*groups], batch) for batch in batches]
    together, alone = ([g for g in groups if (g in shared) is wanted] for wanted in (False, True))
    found = [(together, batch) for batch in batches] if together else []
    return found + [(alone, sample) for batch in batches for sample in batch.samples()] if alone else found


def _measured(analysis: Analysis, samples: int) -> int:
    """Choose how many samples to measure by default: none where the batch size is fixed."""
    return 0 if analysis.captured.fixed_batch else min(samples, max(4, samples // 40))


def _with_measured(
    group: Group,
    estimates: np.ndarray,
    batches: Sequence[Batch],
    count: int,
    measure: Callable[..., Scores],
) -> np.ndarray:
    """Take the mean over samples: the largest as measured, the rest as estimated, to scale.

    estimates: [samples, size].  count: how many of the samples are measured.
    """
    order = np.argsort(-estimates.reshape(len(estimates), -1).sum(1), kind="stable")
    several = [sample for batch in batches for sample in batch.samples()]
    exact = measure([several[i] for i in order[:count]])[group] * count
    scale = exact.sum() / max(float(estimates[order[:count]].sum()), 1e-300)
    mean: np.ndarray = (exact + scale * estimates[order[count:]].sum(0)) / len(estimates)
    return mean


def _squared_slopes(
    model: SoftMasked,
    groups: Sequence[Group],
    batch: Batch,
    read: Reading,
    draws: int,
    generator: torch.Generator,
) -> list[tuple[Group, Tensor]]:
    """Sum the squared derivative by masks over draws, for each group and sample: [b, size]."""
    masks = ones(model, groups, batch.size)
    with torch.enable_grad():
        output = model.forward(masks, batch.size, *batch.arguments())
        prediction = read(output, batch.size)
        sums = {group: torch.zeros(batch.size, *shape_of(group), dtype=torch.float64) for group in groups}
        summed = model.analysis.captured.fixed_batch
        for slopes in prediction.slopes(list(masks.values()), draws, generator, summed=summed):
            for group, slope in zip(masks, slopes, strict=True):
                sums[group] += slope.double().square().cpu()
    return list(sums.items())


def ones(model: SoftMasked, groups: Sequence[Group], size: int) -> Masks:
    like = like_weights(model.module)
    return {
        g: torch.ones(size, *shape_of(g), device=like.device, dtype=like.dtype, requires_grad=True)
        for g in groups
    }
