"""Score channels by what is lost once those that stay make up for them, as the re-fit lets them.

Removing channel j of what a layer reads, and solving the layer again, leaves the squared error

    |w_j|^2 / [C^-1]_jj,    C = the covariance of what it reads, w_j = what its weight makes of channel j

(optimal brain surgeon, https://papers.nips.cc/paper/1992/hash/303ed4c69846ab36c2904d3ba8573050-Abstract.html).
Channels go one after the other, a few at a time: what is missing is put on the rest, in C and in w, before
the next are chosen.  A layer's errors are brought to the scale of the divergences that its channels were
given before, so that groups compare.
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
from fxprune.choose.importance.counts import Lengths, counts_of, is_known
from fxprune.choose.importance.data import Batch
from fxprune.choose.importance.gram import gram
from fxprune.choose.importance.held_out import split_data
from fxprune.choose.importance.scores import Scores
from fxprune.choose.importance.soft_masks import SoftMasked, Use
from fxprune.choose.importance.waves import in_waves
from fxprune.graph.tensors import at_least_float32, named_tensors
from fxprune.rules.axes import Atom, Axis, Product, atoms_of

__all__ = ["compensable", "compensated", "removal_costs", "rows_read"]

RIDGE = 3e-2  # of the mean variance, added to the covariance: few samples claim too much
SHARE = 32  # at least one channel in so many of those left goes at once
PLACES = 16  # times as many as channels, at least, that a covariance is taken of
HELD = 1 << 27  # numbers that the covariances of one pass take at most, or the largest where that is more


def compensated(
    analysis: Analysis,
    groups: Sequence[Group],
    scores: Scores,
    data: Iterable[Any] | None,
    *,
    lengths: Lengths | None = None,
    progress: bool = True,
) -> Scores:
    """Return the scores, anew for every group that is read by layers with weights of their own alone.

    Args:
        scores: estimated KL of removing each element while the others stay as they are.
        data: the batches that these are of.
        lengths: of derivatives by layers' answers on the same data, where they are known: places count by
            them, as they do where a layer is solved again.
    """
    model = SoftMasked(analysis, groups)
    layers = _layers(model, groups)
    found: Scores = {}
    waves = [dict(wave) for wave in in_waves(layers.items(), _numbers, HELD)]
    batches = split_data(data, analysis, "kl").all if waves else ()
    with tqdm(
        total=len(waves) * len(batches), desc="covariances", unit="batch", disable=None if progress else True
    ) as bar:
        for wave in waves:
            spreads = _spreads(analysis, wave, batches, lengths or {}, bar)
            for group, uses in wave.items():
                pairs = [(spreads[node, group], weight) for node, weight in uses]
                found[group] = _to_scale(pairs, scores[group])
    return {**scores, **found}


def compensable(analysis: Analysis, groups: Sequence[Group]) -> list[Group]:
    """Return the groups that layers with weights of their own read, and nothing else does."""
    return list(_layers(SoftMasked(analysis, groups), groups))


Readers = list[tuple[fx.Node, Tensor]]  # nodes and what their weights make of a group
Layers = dict[Group, Readers]


def _layers(model: SoftMasked, groups: Sequence[Group]) -> Layers:
    """Find the layers of each group, with weights [.., outputs, n]; groups read otherwise are left out."""
    found: Layers = {group: [] for group in groups}
    tensors = dict(named_tensors(model.analysis.module))
    for node, uses in (*model.uses.items(), *model.statistics.items()):
        for use in uses:
            weight = rows_read(model.analysis, tensors, node, use) if node in model.uses else None
            if weight is None:
                found.pop(use.group, None)
            elif use.group in found:
                found[use.group].append((node, weight))
    return {group: layers for group, layers in found.items() if layers}


def rows_read(analysis: Analysis, tensors: Mapping[str, Tensor], node: fx.Node, use: Use) -> Tensor | None:
    """Return what a layer's own weight makes of a group, [.., outputs, n]; None where it has no such weight.

    Leading dims are a head each, where heads choose for themselves.  tensors: of the analysed graph, by name.
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


def _to_scale(pairs: Sequence[tuple[Tensor, Tensor]], alone: np.ndarray) -> np.ndarray:
    """Return what each element costs when it goes in turn, in units of `alone`.

    The unit is the median over elements: some few are huge, and of no account in what is predicted.
    """
    alone = np.asarray(alone, dtype=np.float64)
    costs, errors = [], []
    for head in range(alone.size // alone.shape[-1]):
        own = [(c.reshape(-1, *c.shape[-2:])[head], w.reshape(-1, *w.shape[-2:])[head]) for c, w in pairs]
        costs.append(removal_costs(own))
        errors.append(sum((c.diagonal() * w.double().square().sum(0)).cpu().numpy() for c, w in own))
    error, said = np.stack(errors).reshape(alone.shape), np.clip(alone, 0, None)
    counted = error > 0
    scale = float(np.median(said[counted] / error[counted])) if counted.any() else 0.0
    return np.stack(costs).reshape(alone.shape) * scale


def removal_costs(readers: Sequence[tuple[Tensor, Tensor]]) -> np.ndarray:
    """Return the squared error that each channel's removal adds, when the cheapest goes first.

    Args:
        readers: covariances [n, n] of what each reader reads, and its weight [outputs, n].

    Returns:
        float64 [n]: never less than what went before cost, so that the lowest are those that go first.
    """
    inverses, weights = [], []
    for covariance, weight in readers:
        inverses.append(_inverse(covariance.double()))
        weights.append(weight.double())
    n = len(inverses[0])
    costs, left, floor = np.zeros(n), torch.arange(n), 0.0
    while len(left):
        pairs = zip(inverses, weights, strict=True)
        now = sum(w.square().sum(0) / h.diagonal() for h, w in pairs)
        assert isinstance(now, Tensor)
        going = now.argsort(stable=True)[: math.ceil(len(left) / SHARE)].cpu()
        gone = torch.zeros(len(left), dtype=torch.bool)
        gone[going] = True
        staying = (~gone).nonzero()[:, 0]
        for j in going.tolist():
            floor = max(floor, float(now[j]))
            costs[left[j]] = floor
        for i, (h, w) in enumerate(zip(inverses, weights, strict=True)):
            # What each of those that stay takes over of each that goes.
            crossed = h[going][:, staying]
            share = torch.linalg.solve(h[going][:, going], crossed)
            inverses[i] = h[staying[:, None], staying].addmm_(crossed.mT, share, alpha=-1)
            weights[i] = w[:, staying].addmm_(w[:, going], share, alpha=-1)
        left = left[staying]
    return costs


def _inverse(covariance: Tensor) -> Tensor:
    """Invert a covariance with a ridge, a larger one where rounding makes it none."""
    mean = covariance.diagonal().mean().clamp_min(torch.finfo(torch.float64).tiny)
    eye, ridge = torch.eye(len(covariance), dtype=torch.float64, device=covariance.device), RIDGE
    while True:
        factor, failed = torch.linalg.cholesky_ex(covariance + ridge * mean * eye)
        if not failed or ridge > 1:
            return torch.cholesky_inverse(factor)
        ridge *= 10
