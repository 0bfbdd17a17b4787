"""Score channels by what is lost once those that stay make up for them, as the re-fit lets them.

Removing channel j of what a layer reads, and solving the layer again, leaves an error of the predictions of

    w_j^T G w_j / [C^-1]_jj / 2

    C = the covariance of what the layer reads, w_j = what its weight makes of channel j,
    G = the second moment of the derivative of log p by the layer's answer

(optimal brain surgeon, https://papers.nips.cc/paper/1992/hash/303ed4c69846ab36c2904d3ba8573050-Abstract.html).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from fxprune.analysis.analysis import Analysis, Group
from fxprune.choose.importance.answers import Derivatives
from fxprune.choose.importance.bars import hidden
from fxprune.choose.importance.covariances import spreads_of, waves_of
from fxprune.choose.importance.held_out import split_data
from fxprune.choose.importance.layers import layers_by_group
from fxprune.choose.importance.reads import Key
from fxprune.choose.importance.removal import removal_costs
from fxprune.choose.importance.scores import Scores

__all__ = ["compensated"]

ALIKE = 0.3  # share of derivatives that counts along all directions alike: few samples tell them apart


def compensated(
    analysis: Analysis,
    groups: Sequence[Group],
    data: Iterable[Any] | None,
    derivatives: Derivatives,
    spreads: Mapping[Key, Tensor] | None = None,
    *,
    progress: bool = True,
) -> tuple[Scores, Scores]:
    """Estimate the KL of removing each element in turn, of groups that `layers_by_group` finds.

    Args:
        derivatives: by the answers of the layers that read them, on the same data.  Places count by their
            lengths, as they do where a layer is solved again.
        spreads: covariances of what layers read, as far as they are known; for the others the data is run
            over again, once for as many as are held at once.

    Returns:
        The estimates, and what the same moments say of removing each alone, with nothing made up for.
    """
    layers = layers_by_group(analysis, groups)
    roots = {node: _root(derivatives.moments[node.name]) for uses in layers.values() for node, _ in uses}
    found: Scores = {}
    alone: Scores = {}

    def judge(some: Iterable[Group], spreads: Mapping[Key, Tensor]) -> None:
        for group in some:
            pairs = [(spreads[node, group], _times(roots[node], weight)) for node, weight in layers[group]]
            found[group], alone[group] = _costs(pairs), _costs_alone(pairs)

    known = spreads or {}
    judge((g for g, uses in layers.items() if all((node, g) in known for node, _ in uses)), known)
    waves = waves_of({group: uses for group, uses in layers.items() if group not in found})
    batches = split_data(data, analysis, "kl").all if waves else ()
    with tqdm(
        total=len(waves) * len(batches), desc="covariances", unit="batch", disable=hidden(progress)
    ) as bar:
        for wave in waves:
            judge(wave, spreads_of(analysis, [*wave], batches, derivatives.lengths, bar))
    return found, alone


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
