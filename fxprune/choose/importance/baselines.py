"""Criteria to compare with: random, activation, Taylor."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx
from tqdm import tqdm

from fxprune.analysis.analysis import Analysis, Group
from fxprune.choose.importance.bars import hidden
from fxprune.choose.importance.data import Batch, batches_of, few_at_once
from fxprune.choose.importance.kl import ones, passes_of
from fxprune.choose.importance.reading import Reading, reading_of
from fxprune.choose.importance.scores import Scores, shape_of
from fxprune.choose.importance.soft_masks import SoftMasked
from fxprune.errors import DataError, shown

__all__ = ["activation", "random", "taylor"]


def random(analysis: Analysis, groups: Sequence[Group], *, seed: int = 0) -> Scores:
    """Draw scores uniformly from [0, 1): what every other criterion should beat."""
    generator = np.random.default_rng(seed)
    return {group: generator.random(shape_of(group)) for group in groups}


def activation(
    analysis: Analysis, groups: Sequence[Group], data: Iterable[Any] | None, *, progress: bool = True
) -> Scores:
    """Return the root mean square of each channel where it is used, averaged over its uses."""
    model = _Watching(analysis, groups)
    batches = few_at_once(batches_of(data, analysis, "activation"), analysis)
    for batch in tqdm(batches, disable=hidden(progress)):
        with torch.no_grad():
            model.forward(ones(model, groups, batch.size), batch.size, *batch.arguments())
    return {group: np.sqrt(model.energy[group] / max(1, model.seen[group])) for group in groups}


class _Watching(SoftMasked):
    """Adds up the squares of every operand that a mask would be applied to."""

    def __init__(self, analysis: Analysis, groups: Sequence[Group]) -> None:
        super().__init__(analysis, groups)
        self.energy = {group: np.zeros(shape_of(group)) for group in groups}
        self.seen = dict.fromkeys(groups, 0)

    def run_node(self, n: fx.Node) -> Any:
        for use in (*self.uses.get(n, ()), *self.statistics.get(n, ())):
            operand = self.env[use.operand].detach()
            mask = self.masks[use.group].detach().requires_grad_()
            with torch.enable_grad():  # the transpose of spreading a mask is adding up along it
                spread = (operand.square() * self._spread(use, mask)).sum()
                (squares,) = torch.autograd.grad(spread, mask)
            self.energy[use.group] += (
                squares.sum(0).double().cpu().numpy() * squares.numel() / operand.numel()
            )
            self.seen[use.group] += len(squares)
        return super(SoftMasked, self).run_node(n)


def taylor(
    analysis: Analysis,
    groups: Sequence[Group],
    data: Iterable[Any] | None,
    *,
    loss: Callable[[Any, Any], Tensor] | None = None,
    progress: bool = True,
) -> Scores:
    """Compute the mean size, per sample, of the loss's derivative by each channel's mask (first order).

    "Importance Estimation for Neural Network Pruning" (https://arxiv.org/abs/1906.10771).  Needs labels:
    cross-entropy of class scores, or `loss(output, labels)` -> a sum over samples.
    """
    model = SoftMasked(analysis, groups)
    cost = _given_loss(loss) if loss else partial(_cross_entropy, reading_of(analysis))
    totals = {group: np.zeros(shape_of(group)) for group in groups}
    batches = few_at_once(batches_of(data, analysis, "taylor"), analysis)
    if (bare := next((i for i, batch in enumerate(batches) if batch.labels is None), None)) is not None:
        raise DataError(
            f"importance='taylor' needs labels: batch {bare} of data= holds inputs only; give (inputs, "
            f"labels), or use importance='kl', which needs none"
        )
    for subset, batch in tqdm(passes_of(model, groups, batches), disable=hidden(progress)):
        masks = ones(model, subset, batch.size)
        with torch.enable_grad():
            value = cost(model.forward(masks, batch.size, *batch.arguments()), batch)
            slopes = torch.autograd.grad(value, list(masks.values()), allow_unused=True)
        for group, slope in zip(masks, slopes, strict=True):
            if slope is not None:
                totals[group] += slope.abs().sum(0).double().cpu().numpy()
    count = sum(batch.size for batch in batches)
    return {group: total / count for group, total in totals.items()}


def _given_loss(loss: Callable[[Any, Any], Tensor]) -> Callable[[Any, Batch], Tensor]:
    """Check what a loss of the user's returns."""

    def value(output: Any, batch: Batch) -> Tensor:
        found = loss(output, batch.labels)
        if not isinstance(found, Tensor) or found.numel() != 1 or not found.requires_grad:
            raise DataError(
                f"loss= of importance='taylor' must return a scalar that the model's output decides, the sum "
                f"over samples, not {shown(found)}"
            )
        return found.sum()

    return value


def _cross_entropy(read: Reading, output: Any, batch: Batch) -> Tensor:
    prediction = read(output, batch.size)
    if prediction.classes is None or prediction.classes.shape[1] != 1:
        raise DataError("importance='taylor': the outputs are no class scores [b, classes]; give loss=")
    scores = prediction.classes[:, 0]
    labels = torch.as_tensor(batch.labels, device=scores.device)
    if labels.shape == scores.shape and labels.is_floating_point():  # (of several classes, a share each)
        return -(labels * scores).sum()
    if labels.shape != scores.shape[:1] or labels.is_floating_point():
        raise DataError(
            f"importance='taylor': labels of shape {tuple(labels.shape)} and {labels.dtype} are none of "
            f"{len(scores)} samples: a whole number each, or the share of every class; or give loss="
        )
    if not bool(((labels >= 0) & (labels < scores.shape[1])).all()):
        raise DataError(
            f"importance='taylor': labels go from {int(labels.min())} to {int(labels.max())}, and the model "
            f"has {scores.shape[1]} classes, from 0"
        )
    if not scores.requires_grad:
        raise DataError("importance='taylor': no derivative reaches the model's outputs")
    return F.nll_loss(scores, labels.long(), reduction="sum")
