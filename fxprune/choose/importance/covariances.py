"""Covariances of what layers read, over some of its places: those that count more are taken more often."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from fxprune.analysis.analysis import Analysis, Group
from fxprune.choose.importance.answers import Lengths, counts_of
from fxprune.choose.importance.data import Batch
from fxprune.choose.importance.gram import gram
from fxprune.choose.importance.layers import Layers, Readers
from fxprune.choose.importance.reads import Key, Reads
from fxprune.choose.importance.waves import in_waves
from fxprune.graph.tensors import at_least_float32

__all__ = ["PLACES", "CovarianceSums", "Spreads", "spreads_of", "waves_of"]

PLACES = 16  # for each channel, about, that a covariance is taken of
HELD = 1 << 27  # numbers that the covariances of one wave hold at most, or the largest where that is more


def waves_of(layers: Layers) -> list[list[Group]]:
    """Cut groups, each with its layers, into runs whose covariances can be held at once."""
    return [[group for group, _ in wave] for wave in in_waves(layers.items(), _numbers, HELD)]


def spreads_of(
    analysis: Analysis,
    groups: Sequence[Group],
    batches: Sequence[Batch],
    lengths: Lengths,
    bar: tqdm[Any],
) -> dict[Key, Tensor]:
    """Collect the covariance [.., n, n] of what each reader of some groups reads, in one run over the data.

    lengths: of derivatives by layers' answers, by which places count where they are known.
    """
    model = Reads(analysis, groups)
    sums = Spreads(sum(batch.size for batch in batches))
    for batch in batches:
        with torch.no_grad():
            model.forward({}, batch.size, *batch.arguments())
        sums.add(model.read, batch.size, lengths.get(batch.numbers, {}))
        bar.update()
    return sums.values()


@dataclass
class Spreads:
    """Covariances of every reader that grow batch by batch: not frozen.

    samples: of all batches.
    """

    samples: int
    totals: dict[Key, CovarianceSums] = field(default_factory=dict)

    def add(self, read: Mapping[Key, Tensor], size: int, lengths: Mapping[str, Tensor]) -> None:
        """Add what was read of a batch of some size, [.., places, n]; lengths of derivatives by node."""
        for key, vectors in read.items():
            wanted = math.ceil(PLACES * vectors.shape[-1] * size / self.samples)
            total = self.totals.setdefault(key, CovarianceSums())
            total.add(_thinned(vectors, wanted, lengths.get(key[0].name)))

    def values(self) -> dict[Key, Tensor]:
        return {key: total.value() for key, total in self.totals.items()}


@dataclass
class CovarianceSums:
    """Sums that grow batch by batch, about the first one's mean: not frozen."""

    about: Tensor | None = None
    squares: Tensor | float = 0.0
    sums: Tensor | float = 0.0
    count: int = 0

    def add(self, x: Tensor) -> None:
        """Add places [..., places, n]: about a mean, for little may vary beside it."""
        x = at_least_float32(x)
        if self.about is None:
            self.about = x.mean(-2, keepdim=True)
        x = x - self.about
        self.squares = self.squares + gram(x).double()
        self.sums = self.sums + x.sum(-2).double()
        self.count += x.shape[-2]

    def value(self) -> Tensor:
        assert isinstance(self.squares, Tensor) and isinstance(self.sums, Tensor)
        mean = self.sums / self.count
        return self.squares / self.count - mean[..., :, None] * mean[..., None, :]


def _thinned(read: Tensor, wanted: int, lengths: Tensor | None) -> Tensor:
    """Take `wanted` of the places [..., places, n] of a batch, evenly along the sum of what they count."""
    places = read.shape[-2]
    if lengths is None or lengths.numel() != places:  # a convolution gives more or fewer than it reads
        if wanted >= places:
            return read
        up_to = torch.arange(1.0, places + 1, dtype=torch.float64)
    else:
        up_to = counts_of([lengths])[0].flatten().double().cumsum(0)
    middles = (torch.arange(wanted, device=up_to.device) + 0.5) / wanted * up_to[-1]
    return read[..., torch.searchsorted(up_to, middles).to(read.device), :]


def _numbers(item: tuple[Group, Readers]) -> int:
    """Count the numbers of the covariances that a group needs."""
    group, readers = item
    return sum(weight[..., 0, :].numel() * group.size for _, weight in readers)
