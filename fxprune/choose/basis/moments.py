"""Second moments of what each reader of an axis reads, and of the derivative of log p by it.

They are taken where an op sums over the axis (a linear layer, an attention product), a reader each, since
one operand may have many: a residual stream is read by every branch.  Only moments are kept, in float64.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from tqdm import tqdm

from fxprune.analysis.analysis import Analysis, Group
from fxprune.choose.importance.along import vectors_of
from fxprune.choose.importance.answers import Derivatives, Watched, channels_of, take_slopes
from fxprune.choose.importance.data import Batch
from fxprune.choose.importance.gram import gram
from fxprune.choose.importance.held_out import split_data
from fxprune.choose.importance.predictions import LogProbabilities, Prediction, draws_for
from fxprune.choose.importance.soft_masks import SoftMasked, Use
from fxprune.graph.tensors import at_least_float32

__all__ = ["Moments", "moments_of"]


@dataclass(frozen=True)
class Moments:
    """What one reader of an axis says of it; leading dims are a head each, where heads choose for themselves.

    vectors: second moment of what is read, about zero, [..., n, n].
    covectors: second moment of the derivatives of log p by it, summed over places, for the mean sample.
    derivatives: how many these are of.

    What is read counts as much as log p depends on it there (the length of its derivative): a head that
    reads the class token alone asks about no other token.
    """

    vectors: Tensor
    covectors: Tensor
    derivatives: int


def moments_of(
    analysis: Analysis,
    groups: Sequence[Group],
    data: Iterable[Any] | None,
    *,
    log_probabilities: LogProbabilities | None = None,
    draws: int | None = None,
    seed: int = 0,
    progress: bool = True,
    squared: Collection[str] = (),
) -> tuple[dict[tuple[fx.Node, Group], Moments], Derivatives]:
    """Collect the moments of every reader, a node and the group that it reads, in the order that they run.

    The same derivatives say how much the places of every layer's answer count, for the batches that the
    re-fit cuts the data into.

    Args:
        draws: derivatives taken per sample; each costs one backward pass.  By default as of `draws_for`.
        squared: names of layers of whose answers second moments are wanted as well.

    Raises:
        DataError: there is no data, or a batch is nothing that the model takes.
    """
    batches = split_data(data, analysis, "basis").all
    samples = sum(batch.size for batch in batches)
    draws = draws or draws_for(samples)
    model = _Readers(analysis, groups, squared)
    with tqdm(total=len(batches), desc="moments", unit="batch", disable=None if progress else True) as bar:
        derivatives = take_slopes(model, batches, draws, seed, log_probabilities, bar.update)
    return {key: total.moments(draws * samples) for key, total in model.totals.items()}, derivatives


@dataclass
class _MomentSums:
    """Sums that grow batch by batch: not frozen."""

    vectors: Tensor | float = 0.0
    covectors: Tensor | float = 0.0
    weight: Tensor | float = 0.0

    def add(self, x: Tensor, g: Tensor) -> None:
        """Add places [..., places, n] of a value and of its derivative."""
        counts = torch.linalg.vector_norm(g, dim=-1, keepdim=True)
        self.vectors = self.vectors + gram(x * counts.sqrt()).double()
        self.covectors = self.covectors + gram(g).double()
        self.weight = self.weight + counts.sum((-1, -2)).double()

    def moments(self, derivatives: int) -> Moments:
        assert isinstance(self.vectors, Tensor) and isinstance(self.weight, Tensor)
        assert isinstance(self.covectors, Tensor)
        weight = self.weight.clamp_min(math.ulp(0.0))[..., None, None]
        return Moments(self.vectors / weight, self.covectors / derivatives, derivatives)


class _Readers(SoftMasked):
    """Runs the captured model; each reader of a group has a copy of its operand, whose derivative is seen."""

    def __init__(self, analysis: Analysis, groups: Sequence[Group], squared: Collection[str]) -> None:
        super().__init__(analysis, groups)
        self.totals: dict[tuple[fx.Node, Group], _MomentSums] = {}
        self.watched = Watched(channels_of(analysis), squared)
        self._read: dict[tuple[fx.Node, Group], tuple[Use, Tensor]] = {}

    def run_node(self, n: fx.Node) -> Any:
        uses = self.uses.get(n, [])
        originals = {use.operand: self.env[use.operand] for use in uses}
        for operand, value in originals.items():
            alias = value.view_as(value) if value.requires_grad else value.detach().requires_grad_()
            self.env[operand] = alias
            for use in uses:
                if use.operand is operand:
                    self._read[(n, use.group)] = use, alias
        try:
            return self.watched.watch(n, super().run_node(n))
        finally:
            self.env.update(originals)

    def run_on(self, batch: Batch) -> Any:
        return self.forward({}, batch.size, *batch.args)

    def add_slopes(self, prediction: Prediction, draws: int, generator: torch.Generator) -> None:
        """Add what was read, and the derivatives by it, to the totals; and those by layers' answers."""
        reads, self._read = self._read, {}
        answers = self.watched.taken()
        values = [*(alias for _, alias in reads.values()), *answers.values()]
        for slopes in prediction.slopes(values, draws, generator):
            self.watched.add(dict(zip(answers, slopes[len(reads) :], strict=True)))
            for (key, (use, alias)), slope in zip(reads.items(), slopes, strict=False):
                pair = [vectors_of(use, t.detach(), self.size) for t in (alias, slope)]
                total = self.totals.setdefault(key, _MomentSums())
                total.add(*map(at_least_float32, pair))
