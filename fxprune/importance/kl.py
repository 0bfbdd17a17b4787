"""The KL divergence that removing each channel causes, to second order, for all groups in one pass.

At the model itself the divergence between its predictions and a changed model's is zero, and so is its
slope; its curvature is the Fisher information.  So with F the mean of the squared derivative of log p(y | x)
by a channel's mask, y drawn from the model's own predictions, removing the channel costs about F / 2.
The exact quantity is that of UP-ViTs (https://arxiv.org/abs/2111.15127), see `exact`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from fxprune.analysis import Analysis, Group
from fxprune.importance.data import Batch, batches_of
from fxprune.importance.predictions import LogProbabilities, predictions_of
from fxprune.importance.scores import Scores, shape_of
from fxprune.importance.soft_masks import Masks, SoftMasked

__all__ = ["kl"]


def kl(
    analysis: Analysis,
    groups: Sequence[Group],
    data: Iterable[Any] | None,
    *,
    log_probabilities: LogProbabilities | None = None,
    draws: int = 4,
    seed: int = 0,
    progress: bool = True,
) -> Scores:
    """Half the Fisher information along each channel, averaged over samples and draws.

    Args:
        draws: targets drawn per sample; each costs one backward pass.
    """
    batches = batches_of(data, analysis, "kl")
    model = SoftMasked(analysis, groups)
    generator = torch.Generator().manual_seed(seed)
    # Where a group is used no sample is told from another, its derivative is taken sample by sample.
    shared = model.without_batch()
    together = [g for g in groups if g not in shared]
    passes = [(together, batches)] if together else []
    if shared:
        passes.append(([g for g in groups if g in shared], [s for b in batches for s in b.samples()]))
    totals = {group: torch.zeros(shape_of(group), dtype=torch.float64) for group in groups}
    bar = tqdm(
        [(subset, batch) for subset, several in passes for batch in several],
        desc="importance",
        unit="batch",
        disable=None if progress else True,
    )
    for subset, batch in bar:
        for group, squares in _squared_slopes(model, subset, batch, log_probabilities, draws, generator):
            totals[group] += squares
    count = draws * sum(batch.size for batch in batches)
    return {group: (total / (2 * count)).numpy() for group, total in totals.items()}


def _squared_slopes(
    model: SoftMasked,
    groups: Sequence[Group],
    batch: Batch,
    log_probabilities: LogProbabilities | None,
    draws: int,
    generator: torch.Generator,
) -> list[tuple[Group, Tensor]]:
    """For each group the squared derivative by its masks, summed over samples and draws."""
    masks = _ones(model, groups, batch.size)
    with torch.enable_grad():
        output = model.forward(masks, batch.size, *batch.args)
        prediction = predictions_of(output, batch.size, log_probabilities)
        sums = {group: torch.zeros(shape_of(group), dtype=torch.float64) for group in groups}
        for draw in range(draws):
            slopes = torch.autograd.grad(
                prediction.drawn(generator),
                list(masks.values()),
                retain_graph=draw < draws - 1,
                allow_unused=True,
            )
            for group, slope in zip(masks, slopes, strict=True):
                if slope is not None:
                    sums[group] += slope.double().square().sum(0).cpu()
    return list(sums.items())


def _ones(model: SoftMasked, groups: Sequence[Group], size: int) -> Masks:
    like = next(model.module.parameters())
    return {
        g: torch.ones(size, *shape_of(g), device=like.device, dtype=like.dtype, requires_grad=True)
        for g in groups
    }
