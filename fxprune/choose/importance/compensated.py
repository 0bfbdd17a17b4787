"""Score channels by what is lost once those that stay make up for them, as the re-fit lets them.

Removing channel j of what a layer reads, and solving the layer again, leaves an error of the predictions of

    w_j^T G w_j / [C^-1]_jj / 2

    C = the covariance of what the layer reads, w_j = what its weight makes of channel j,
    G = the second moment of the derivative of log p by the layer's answer

(optimal brain surgeon, https://papers.nips.cc/paper/1992/hash/303ed4c69846ab36c2904d3ba8573050-Abstract.html).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from tqdm import tqdm

from fxprune.analysis.analysis import Analysis, Group
from fxprune.choose.importance.along import along, vectors_of
from fxprune.choose.importance.answers import (
    Derivatives,
    Lengths,
    channels_of,
    counts_of,
    derivatives_of,
    is_known,
)
from fxprune.choose.importance.data import Batch
from fxprune.choose.importance.gram import gram
from fxprune.choose.importance.held_out import split_data
from fxprune.choose.importance.predictions import LogProbabilities
from fxprune.choose.importance.removal import removal_costs
from fxprune.choose.importance.scores import Scores
from fxprune.choose.importance.soft_masks import SoftMasked, Use
from fxprune.choose.importance.waves import in_waves
from fxprune.graph.tensors import at_least_float32, named_tensors
from fxprune.rules.axes import Atom, Axis, Product, atoms_of

__all__ = ["compensable", "compensated", "layers_of", "rows_read", "with_derivatives"]

ALIKE = 0.3  # share of derivatives that counts along all directions alike: few samples tell them apart
PLACES = 16  # times as many as channels, at least, that a covariance is taken of
HELD = 1 << 27  # numbers that the covariances of one pass take at most, or the largest where that is more


def compensated(
    analysis: Analysis,
    groups: Sequence[Group],
    data: Iterable[Any] | None,
    derivatives: Derivatives,
    *,
    progress: bool = True,
) -> tuple[Scores, Scores]:
    """Estimate the KL of removing each element in turn, of groups that `compensable` returns.

    Args:
        derivatives: by the answers of the layers that read them, on the same data.  Places count by their
            lengths, as they do where a layer is solved again.

    Returns:
        The estimates, and what the same moments say of removing each alone, with nothing made up for.
    """
    layers = _layers(analysis, groups)
    roots = {node: _root(derivatives.moments[node.name]) for uses in layers.values() for node, _ in uses}
    found: Scores = {}
    alone: Scores = {}
    waves = [dict(wave) for wave in in_waves(layers.items(), _numbers, HELD)]
    batches = split_data(data, analysis, "kl").all if waves else ()
    with tqdm(
        total=len(waves) * len(batches), desc="covariances", unit="batch", disable=None if progress else True
    ) as bar:
        for wave in waves:
            spreads = _spreads(analysis, wave, batches, derivatives.lengths, bar)
            for group, uses in wave.items():
                pairs = [(spreads[node, group], _times(roots[node], weight)) for node, weight in uses]
                found[group], alone[group] = _costs(pairs), _costs_alone(pairs)
    return found, alone


def compensable(analysis: Analysis, groups: Sequence[Group]) -> list[Group]:
    """Return the groups that layers with weights of their own read, and nothing else does."""
    return list(_layers(analysis, groups))


def layers_of(analysis: Analysis, groups: Sequence[Group]) -> set[str]:
    """Return the names of the layers that read those of some groups that `compensable` returns."""
    return {node.name for uses in _layers(analysis, groups).values() for node, _ in uses}


def with_derivatives(
    analysis: Analysis,
    groups: Sequence[Group],
    data: Iterable[Any] | None,
    known: Derivatives,
    *,
    draws: int | None = None,
    seed: int = 0,
    log_probabilities: LogProbabilities | None = None,
    progress: bool = True,
) -> Derivatives:
    """Return the derivatives that `compensated` needs for some groups: those that are known, if they do."""
    squared = layers_of(analysis, groups)
    if squared <= known.moments.keys():
        return known
    batches = split_data(data, analysis, "kl").all
    with tqdm(
        total=len(batches), desc="derivatives", unit="batch", disable=None if progress else True
    ) as bar:
        return derivatives_of(
            analysis.module,
            channels_of(analysis),
            batches,
            squared=squared,
            draws=draws,
            seed=seed,
            log_probabilities=log_probabilities,
            step=bar.update,
        )


Readers = list[tuple[fx.Node, Tensor]]  # nodes and what their weights make of a group
Layers = dict[Group, Readers]


def _layers(analysis: Analysis, groups: Sequence[Group]) -> Layers:
    """Find the layers of each group, with weights [.., outputs, n]; groups read otherwise are left out."""
    model = SoftMasked(analysis, groups)
    found: Layers = {group: [] for group in groups}
    tensors, solved = dict(named_tensors(analysis.module)), channels_of(analysis)
    for node, uses in (*model.uses.items(), *model.statistics.items()):
        for use in uses:
            weight = rows_read(analysis, tensors, node, use) if node.name in solved else None
            if weight is None:
                found.pop(use.group, None)
            elif use.group in found:
                found[use.group].append((node, weight))
    return {group: layers for group, layers in found.items() if layers}


def rows_read(analysis: Analysis, tensors: Mapping[str, Tensor], node: fx.Node, use: Use) -> Tensor | None:
    """Return what a layer's own weight makes of a group, [.., outputs, n]; None where it has no such weight.

    Leading dims are a head each, where heads choose for themselves.  Outputs are those of each place of a
    kernel in turn.  tensors: of the analysed graph, by name.
    """
    group = use.group
    head = group.inside.atom if group.inside is not None else None
    allowed = {group.atom} if head is None else {group.atom, head}
    if not all(_is_plain(axis, allowed) for axis in use.axes):
        return None
    names = {
        s.name for s in analysis.graph.operands.get(node, ()) if group.atom in atoms_of(analysis.axis(s))
    }
    if len(names) != 1:
        return None
    (name,) = names
    axes, weight = analysis.weights[name], tensors[name].detach()
    carrying = [axis for axis in axes if group.atom in atoms_of(axis)]
    if len(carrying) != 1 or not all(_is_plain(axis, allowed) for axis in axes):
        return None
    if head is not None and head not in atoms_of(carrying[0]):
        return None
    return along(weight, axes, group.atom, head, 1)


def _is_plain(axis: Axis, allowed: set[Atom]) -> bool:
    """Is a group's atom alone along an axis, or with its heads, or not there at all?"""
    atoms = {*atoms_of(axis)}
    if atoms.isdisjoint(allowed):
        return True
    return atoms <= allowed and isinstance(axis, Atom | Product)


def _numbers(item: tuple[Group, Readers]) -> int:
    """Count the numbers of the covariances that a group needs."""
    group, readers = item
    return sum(weight[..., 0, :].numel() * group.size for _, weight in readers)


def _spreads(
    analysis: Analysis, layers: Layers, batches: Sequence[Batch], lengths: Lengths, bar: tqdm[Any]
) -> dict[tuple[fx.Node, Group], Tensor]:
    """Collect the covariance [.., n, n] of what each layer reads, in one pass over the data."""
    model = _Covariances(analysis, list(layers), sum(batch.size for batch in batches))
    nodes = {node.name for uses in layers.values() for node, _ in uses}
    counts = {n: counts_of(lengths, n, batches) for n in nodes if is_known(lengths, n, batches)}
    for i, batch in enumerate(batches):
        model.counts = {node: found[i] for node, found in counts.items()}
        with torch.no_grad():
            model.forward({}, batch.size, *batch.args)
        bar.update()
    return {key: total.value() for key, total in model.totals.items()}


@dataclass
class _Covariance:
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


class _Covariances(SoftMasked):
    """Runs the captured model; adds up what every reader of a group reads.

    counts: how much each place of the batch counts, by node, as its answer with 1 channel.
    """

    def __init__(self, analysis: Analysis, groups: Sequence[Group], samples: int) -> None:
        super().__init__(analysis, groups)
        self.totals: dict[tuple[fx.Node, Group], _Covariance] = {}
        self.counts: dict[str, Tensor] = {}
        self._in_all = samples

    def run_node(self, n: fx.Node) -> Any:
        for use in self.uses.get(n, ()):
            read = vectors_of(use, self.env[use.operand], self.size)
            self.totals.setdefault((n, use.group), _Covariance()).add(
                self._thinned(read, self.counts.get(n.name))
            )
        return super().run_node(n)

    def _thinned(self, read: Tensor, counts: Tensor | None) -> Tensor:
        """Take spread places [..., places, n] of a batch, as often as they count, enough from all batches."""
        places, n = read.shape[-2:]
        wanted = math.ceil(PLACES * n * self.size / self._in_all)
        if counts is None or counts.numel() != places:  # a convolution gives more or fewer
            if wanted >= places:
                return read
            counts = torch.ones(places)
        up_to = counts.flatten().double().cumsum(0)
        middles = (torch.arange(wanted, device=up_to.device) + 0.5) / wanted * up_to[-1]
        return read[..., torch.searchsorted(up_to, middles).to(read.device), :]


def _costs_alone(pairs: Sequence[tuple[Tensor, Tensor]]) -> np.ndarray:
    """Return what each element costs that goes alone, as it is: [n] or [heads, n]."""
    found = [c.diagonal(dim1=-2, dim2=-1) * w.square().sum(-2) / 2 for c, w in pairs]
    costs: np.ndarray = torch.stack(found).sum(0).cpu().numpy()
    return costs


def _root(moment: Tensor) -> Tensor:
    """Return a matrix R with R^T R = a second moment of derivatives, a share of which counts alike."""
    squares, directions = torch.linalg.eigh(moment)
    squares = (1 - ALIKE) * squares.clamp_min(0) + ALIKE * squares.mean()
    root: Tensor = (directions * squares.sqrt()).mT
    return root


def _times(root: Tensor, weight: Tensor) -> Tensor:
    """Multiply the outputs of a weight [.., outputs, n], of each place of its kernel, by a matrix."""
    kernel = weight.shape[-2] // len(root)
    rows = torch.unflatten(weight.to(root), -2, (len(root), kernel))
    return torch.einsum("po,...okn->...pkn", root, rows).flatten(-3, -2)


def _costs(pairs: Sequence[tuple[Tensor, Tensor]]) -> np.ndarray:
    """Return what each element costs when it goes in turn, of every head: [n] or [heads, n]."""
    if pairs[0][0].ndim == 2:
        return removal_costs(pairs) / 2
    heads = range(len(pairs[0][0]))
    return np.stack([removal_costs([(c[head], w[head]) for c, w in pairs]) / 2 for head in heads])
