"""Choose the basis of every free axis: its coordinates by what they cost, the first ones to stay."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from fxprune.analysis.analysis import Analysis, Group
from fxprune.analysis.freedom.regions import Freedom, Region
from fxprune.choose.basis.discarded import Readers
from fxprune.choose.basis.principal import principal
from fxprune.choose.basis.readers import folded_weights, on_weights, readings_of
from fxprune.choose.basis.stream import kept_directions, rotation
from fxprune.choose.importance.gathered import Gathered, Moments, gathered
from fxprune.choose.importance.layers import rows_read
from fxprune.choose.importance.scores import Scores, shape_of
from fxprune.choose.importance.soft_masks import SoftMasked
from fxprune.graph.tensors import named_tensors

__all__ = ["Chosen", "chosen_bases"]

ROWS = 200  # derivatives: the rows of the weight of a stream's reader count as much as so many


@dataclass(frozen=True)
class Chosen:
    """What is known of the bases of some groups, before it is known how much of each stays.

    readers: name of a basis -> the moments of what reads in it.
    costs: group -> estimated KL of discarding each coordinate, in descending order, [n] or [heads, n].
    alone: the same of each coordinate that the model has, before any changes.
    analysis: on the weights that the moments are of, with norms and scales in the layers.
    """

    readers: Mapping[str, Readers]
    costs: Scores
    alone: Scores
    analysis: Analysis

    def matrices(self, counts: Mapping[str, int]) -> dict[str, Tensor]:
        """Return the matrix of every basis of the groups that shrink, for the number that each keeps."""
        found = {}
        for group in self.costs:
            for name, region in group.bases.items() if group.name in counts else ():
                readers = self.readers[name]
                if region.freedom is Freedom.ANY:
                    found[name] = principal(readers.vectors.mean(0), readers.covectors.sum(0)).matrix
                else:
                    found[name] = _rotations(readers, counts[group.name], region)
        return found


def chosen_bases(
    analysis: Analysis,
    groups: Sequence[Group],
    data: Iterable[Any] | None,
    *,
    solved: bool = False,
    **options: Any,
) -> tuple[Chosen | None, Gathered]:
    """Collect the moments of every group all of whose parts may change, in the coordinates that it has.

    A group that another kind of reader reads as well is left out: its indices are chosen as they are.
    None, and nothing gathered, where no group is left.

    Args:
        solved: layers are solved again: what they can make up for counts less, and what the scores of the
            other groups want is gathered as well, in the same run.
        options: of `gathered`.

    Returns:
        What bases are chosen from, and what else was gathered, on its analysis.
    """
    free = [g for g in groups if g.regions and all(r.freedom >= Freedom.ROTATION for r in g.regions)]
    names = [name for group in free for name in group.bases]
    if not names:
        return None, Gathered()
    weights = folded_weights(analysis, names)
    readings = readings_of(analysis, free, names, weights)
    canonical = on_weights(analysis, weights)
    rest = [g for g in groups if g not in free] if solved else []
    seen = gathered(canonical, free, rest, data, **options)
    weights_read = _rows(canonical, free)
    found = {key: _by_rows(known, weights_read.get(key), key[1]) for key, known in seen.moments.items()}
    free = [g for g in free if all(key in readings for key in found if key[1] is g)]
    by_name: dict[str, list[_Reader]] = {}
    for key, known in found.items():
        if key[1] in free:
            own = solved and key in weights_read
            by_name.setdefault(readings[key].basis, []).append(_on_side(known, readings[key].side, own))
    free = [g for g in free if all(name in by_name for name in g.bases)]
    readers = {name: _stacked(each) for name, each in by_name.items()}
    costs = {group: _costs(group, readers, lambda c, g: principal(c, g).costs) for group in free}
    alone = {group: _costs(group, readers, _diagonal_costs) for group in free}
    if not costs:
        return None, Gathered()
    return Chosen(readers, costs, alone, canonical), replace(seen, moments={})


def _rows(analysis: Analysis, groups: Sequence[Group]) -> dict[tuple[fx.Node, Group], Tensor]:
    """Find the weights of readers that have one of their own."""
    tensors = dict(named_tensors(analysis.module))
    found = {
        (node, use.group): rows_read(analysis, tensors, node, use)
        for node, uses in SoftMasked(analysis, list(groups)).uses.items()
        for use in uses
    }
    return {key: weight for key, weight in found.items() if weight is not None}


def _by_rows(known: Moments, weight: Tensor | None, group: Group) -> Moments:
    """Mix the rows of a reader's own weight, where it has one, into its covectors, to cost as much in all.

    A derivative of log p by what is read is a sum of rows, and few samples say less of it than the weight
    does: where any basis is allowed, rows take the derivatives' place.  The readers of a stream matter more
    or less, which derivatives alone tell: the more there are the less rows count.
    """
    if weight is None:
        return known
    free = all(region.freedom is Freedom.ANY for region in group.regions)
    share = 1.0 if free else ROWS / (ROWS + known.derivatives)
    rows = weight.double().mT @ weight.double()
    costs, wanted = (torch.einsum("...ij,...ij->...", known.vectors, g) for g in (rows, known.covectors))
    scale = wanted.sum() / costs.sum().clamp_min(torch.finfo(costs.dtype).tiny)
    return replace(known, covectors=share * scale * rows + (1 - share) * known.covectors)


_Reader = tuple[Tensor, Tensor, Tensor, bool]  # one of `Readers`: vectors, covectors, means, solved


def _on_side(known: Moments, side: int, solved: bool) -> _Reader:
    """Return what changes by the matrix for vectors: on the other side those are a reader's covectors."""
    if side > 0:
        return known.vectors, known.covectors, known.means, solved
    return known.covectors, known.vectors, torch.zeros_like(known.means), False


def _stacked(each: Sequence[_Reader]) -> Readers:
    """Put readers of one basis together, on the CPU: matrices are computed there."""
    vectors, covectors, means, solved = zip(*each, strict=True)
    stacked = [torch.stack(some).cpu() for some in (vectors, covectors, means)]
    return Readers(stacked[0], stacked[1], stacked[2], torch.tensor(solved))


def _costs(
    group: Group, readers: Mapping[str, Readers], of: Callable[[Tensor, Tensor], Tensor]
) -> np.ndarray:
    """Add up what the coordinates of all of a group's bases cost by their moments."""
    total = torch.zeros(shape_of(group), dtype=torch.float64)
    for name in group.bases:
        total += of(readers[name].vectors.mean(0), readers[name].covectors.sum(0))
    return total.numpy()


def _diagonal_costs(vectors: Tensor, covectors: Tensor) -> Tensor:
    """Return what each coordinate costs before any changes."""
    return vectors.diagonal(dim1=-2, dim2=-1) * covectors.diagonal(dim1=-2, dim2=-1) / 2


def _rotations(readers: Readers, keep: int, region: Region) -> Tensor:
    """Return the rotation, of each head where they choose for themselves, that puts what stays first."""
    if readers.vectors.ndim == 4:
        heads = range(readers.vectors.shape[1])
        return torch.stack([_rotations(readers.of_head(head), keep, region) for head in heads])
    count = keep - 1 if region.centred else keep
    return rotation(kept_directions(readers, count, centred=region.centred), keep, centred=region.centred)
