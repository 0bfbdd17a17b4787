"""Collect all that choosing wants of the data in one run over it, with the derivatives of log p.

- For bases: second moments of what each reader of an axis reads, and of the derivative by it, taken where an
  op sums over the axis (a linear layer, an attention product).  A reader each, since one operand may have
  many: a residual stream is read by every branch.
- For scores of what layers can make up for: covariances of what they read.
- For all other scores: derivatives by masks.
- For the re-fit: how much every place of a layer's answer counts.

Only sums are kept, in float64.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx
from tqdm import tqdm

from fxprune.analysis.analysis import Analysis, Group
from fxprune.choose.importance.along import vectors_of
from fxprune.choose.importance.answers import Derivatives, Watched, channels_of, take_slopes
from fxprune.choose.importance.bars import hidden
from fxprune.choose.importance.covariances import Spreads, waves_of
from fxprune.choose.importance.data import Batch
from fxprune.choose.importance.gram import gram
from fxprune.choose.importance.held_out import split_data
from fxprune.choose.importance.kl import MEASURED, ones
from fxprune.choose.importance.layers import layer_names, layers_by_group
from fxprune.choose.importance.predictions import LogProbabilities, Prediction, draws_for
from fxprune.choose.importance.reading import reading_of
from fxprune.choose.importance.reads import Key
from fxprune.choose.importance.scores import Scores
from fxprune.choose.importance.soft_masks import SoftMasked, Use
from fxprune.graph.tensors import at_least_float32

__all__ = ["Gathered", "Moments", "gathered"]


@dataclass(frozen=True)
class Moments:
    """What one reader of an axis says of it; leading dims are a head each, where heads choose for themselves.

    vectors: second moment of what is read, about zero, [..., n, n].
    means: of what is read, [..., n].
    covectors: second moment of the derivatives of log p by it, summed over places, for the mean sample.
    derivatives: how many these are of.

    What is read counts as much as log p depends on it there (the length of its derivative): a head that
    reads the class token alone asks about no other token.
    """

    vectors: Tensor
    means: Tensor
    covectors: Tensor
    derivatives: int


@dataclass(frozen=True)
class Gathered:
    """What a run over the data says.

    derivatives: by layers' answers.
    moments: of every reader, a node and the group that it reads, in the order that they run.
    spreads: covariances of what layers read that can make up for what goes, as many as are held at once.
    masked: half the Fisher information along masks.
    """

    derivatives: Derivatives = field(default_factory=Derivatives)
    moments: dict[Key, Moments] = field(default_factory=dict)
    spreads: dict[Key, Tensor] = field(default_factory=dict)
    masked: Scores = field(default_factory=dict)


def gathered(
    analysis: Analysis,
    read: Sequence[Group],
    others: Sequence[Group],
    data: Iterable[Any] | None,
    *,
    log_probabilities: LogProbabilities | None = None,
    draws: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Gathered:
    """Collect what is wanted of some groups, by the batches that the re-fit cuts the data into.

    Args:
        read: groups of whose readers moments are wanted.
        others: groups that are scored otherwise: of those that `layers_by_group` finds, covariances of what
            their layers read and second moments of the derivatives by their answers; of the rest,
            derivatives by masks, where samples are told apart and `kl` measures nothing.
        draws: derivatives taken per sample; each costs one backward pass.  By default as of `draws_for`.

    Raises:
        DataError: there is no data, or a batch is nothing that the model takes.
    """
    batches = split_data(data, analysis, "kl").all
    samples = sum(batch.size for batch in batches)
    draws = draws or draws_for(samples)
    read_outputs = reading_of(analysis, log_probabilities)
    model = _Gathering(analysis, read, others, samples)
    with tqdm(total=len(batches), desc="importance", unit="batch", disable=hidden(progress)) as bar:
        derivatives = take_slopes(model, batches, draws, seed, read_outputs, bar.update)
    return Gathered(
        derivatives,
        {key: total.moments(draws * samples) for key, total in model.moments.items()},
        model.spreads.values(),
        {group: (total / (2 * draws * samples)).numpy() for group, total in model.squares.items()},
    )


@dataclass
class _MomentSums:
    """Sums that grow batch by batch: not frozen."""

    vectors: Tensor | float = 0.0
    means: Tensor | float = 0.0
    covectors: Tensor | float = 0.0
    weight: Tensor | float = 0.0

    def add(self, x: Tensor, g: Tensor) -> None:
        """Add places [..., places, n] of a value and of its derivative."""
        counts = torch.linalg.vector_norm(g, dim=-1, keepdim=True)
        self.vectors = self.vectors + gram(x * counts.sqrt()).double()
        self.means = self.means + (x * counts).sum(-2).double()
        self.covectors = self.covectors + gram(g).double()
        self.weight = self.weight + counts.sum((-1, -2)).double()

    def moments(self, derivatives: int) -> Moments:
        assert isinstance(self.vectors, Tensor) and isinstance(self.weight, Tensor)
        assert isinstance(self.covectors, Tensor) and isinstance(self.means, Tensor)
        weight = self.weight.clamp_min(math.ulp(0.0))[..., None]
        vectors, means = self.vectors / weight[..., None], self.means / weight
        return Moments(vectors, means, self.covectors / derivatives, derivatives)


class _Gathering(SoftMasked):
    """Runs the captured model; each reader of a group has a copy of its operand, whose derivative is seen.

    samples: of all batches.
    """

    def __init__(
        self, analysis: Analysis, read: Sequence[Group], others: Sequence[Group], samples: int
    ) -> None:
        super().__init__(analysis, [*read, *others])
        made_up_for, alone = layers_by_group(analysis, others), self.without_batch()
        self.watched = Watched(channels_of(analysis), layer_names(made_up_for))
        self.moments: dict[Key, _MomentSums] = {}
        self.spreads = Spreads(samples)
        self.squares: dict[Group, Tensor] = {}
        self._seen_by = {*read}
        self._made_up_for = {g for wave in waves_of(made_up_for)[:1] for g in wave}
        self._masked = [
            g for g in others if g not in made_up_for and g not in alone and g.role not in MEASURED
        ]
        self._read: dict[Key, tuple[Use, Tensor]] = {}
        self._held: dict[Key, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        uses = self.uses.get(n, [])
        asked = [use for use in uses if use.group in self._seen_by]
        originals = {use.operand: self.env[use.operand] for use in asked}
        for operand, value in originals.items():
            alias = value.view_as(value) if value.requires_grad else value.detach().requires_grad_()
            self.env[operand] = alias
            for use in asked:
                if use.operand is operand:
                    self._read[n, use.group] = use, alias
        for use in uses:
            if use.group in self._made_up_for:  # (a copy: later nodes may write to it)
                vectors = vectors_of(use, self.env[use.operand].detach(), self.size)
                self._held[n, use.group] = vectors.clone()
        try:
            return self.watched.watch(n, super().run_node(n))
        finally:
            self.env.update(originals)

    def run_on(self, batch: Batch) -> Any:
        return self.forward(ones(self, self._masked, batch.size), batch.size, *batch.arguments())

    def add_slopes(self, prediction: Prediction, draws: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Add what was read, and the derivatives by it, to the sums; and those by masks and answers."""
        reads, self._read = self._read, {}
        answers, masks = self.watched.taken(), self.masks
        values = [*masks.values(), *answers.values(), *(alias for _, alias in reads.values())]
        for slopes in prediction.slopes(values, draws, generator):
            by = iter(slopes)
            for group in masks:
                squares = next(by).double().square().sum(0).cpu()
                self.squares[group] = self.squares.get(group, torch.zeros_like(squares)) + squares
            self.watched.add({name: next(by) for name in answers})
            for key, (use, alias) in reads.items():
                pair = [vectors_of(use, t.detach(), self.size) for t in (alias, next(by))]
                self.moments.setdefault(key, _MomentSums()).add(*map(at_least_float32, pair))
        lengths = self.watched.lengths()
        held, self._held = self._held, {}
        self.spreads.add(held, self.size, lengths)
        return lengths
