"""Align the nodes of a model with those of its smaller sibling: the same code, with fewer blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import fx

from fxprune.analysis.analysis import Analysis
from fxprune.analysis.branches import Branch, find_branches, is_value, nodes_after_input
from fxprune.errors import SiblingError
from fxprune.graph.writes import VIEWS
from fxprune.rules.calls import Weight, call_of

__all__ = ["Alignment", "align"]

Pair = tuple[fx.Node, fx.Node]
Scorer = Callable[[Sequence[Branch]], np.ndarray]  # how much each branch matters

_LAYOUT = VIEWS | {"contiguous", "clone"}  # between blocks these may come once per block, and change nothing
# In eval mode these do nothing.
_TRAINING = {"dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "identity"}


@dataclass(frozen=True)
class Alignment:
    """What of a model corresponds to its sibling.

    pairs: nodes of the model and of the sibling.  removed: the branches without a counterpart.
    """

    pairs: list[Pair]
    removed: list[Branch]


@dataclass(frozen=True)
class _Part:
    """A residual branch, or one node that is in none: what it computes, in words that can be compared."""

    kinds: tuple[tuple[object, ...], ...]
    nodes: tuple[fx.Node, ...]
    branch: Branch | None = None

    @property
    def name(self) -> str:
        return self.branch.name if self.branch else self.nodes[0].name


def align(model: Analysis, sibling: Analysis, score: Scorer) -> Alignment:
    """Match the parts of both graphs in order, leaving out the branches that matter least in sum.

    A part matches one that runs the same ops.  `score` is only asked where branches have to go.

    Raises:
        SiblingError: the sibling has a part without a counterpart, or lacks one that is no branch.
    """
    ours, theirs = _parts(model), _parts(sibling)
    branches = [part.branch for part in ours if part.branch]
    costs = dict.fromkeys(branches, 0.0)
    if len(branches) > sum(part.branch is not None for part in theirs):
        costs = dict(zip(branches, score(branches).tolist(), strict=True))
    matched = _cheapest(ours, theirs, costs)
    removed = [part.branch for i, part in enumerate(ours) if part.branch and i not in matched]
    pairs = [pair for i, j in matched.items() for pair in zip(ours[i].nodes, theirs[j].nodes, strict=True)]
    return Alignment(pairs, removed)


def _parts(analysis: Analysis) -> list[_Part]:
    """Return the branches, and the nodes outside them that are more than layout, in order."""
    branches = find_branches(analysis.module, analysis.rules)
    within = {node for b in branches for node in b.nodes}
    ends = {b.add: b for b in branches}
    computed = nodes_after_input(analysis.module.graph)
    kinds = {
        n: _kind(n, analysis) for n in analysis.module.graph.nodes if n.op == "get_attr" or n in computed
    }
    parts = []
    for node in analysis.module.graph.nodes:
        if node in ends:
            nodes = tuple(n for n in ends[node].nodes if kinds.get(n))
            parts.append(_Part(tuple(kinds[n] for n in nodes), nodes, ends[node]))
        elif node not in within and kinds.get(node) and kinds[node][0] not in _LAYOUT:
            parts.append(_Part((kinds[node],), (node,)))
    return parts


def _kind(node: fx.Node, analysis: Analysis) -> tuple[object, ...]:
    """Return the op, its weights, and the size of its kernel: what no width changes.

    Empty for sizes, for constants (one block may compute what several share), and for dropouts.
    """
    if node.op == "get_attr":
        known = str(node.target) in analysis.names
        return ("weight", node.meta["val"].ndim) if known else ()
    if not is_value(node) or node.op in ("placeholder", "output"):
        return ()
    call = call_of(node, analysis.module, analysis.rules)
    op = call.plain_op
    if op in _TRAINING:
        return ()
    weights = [a.name for a in call.args if isinstance(a, Weight)]
    kernel = [tuple(analysis.module.get_parameter(w).shape[2:]) for w in weights[:1] if op.startswith("conv")]
    return (op, *(w.rpartition(".")[2] for w in weights), *kernel)


def _cheapest(ours: list[_Part], theirs: list[_Part], costs: dict[Branch, float]) -> dict[int, int]:
    """Map our parts to all of theirs, so that the branches left over cost least."""
    best = np.full((len(ours) + 1, len(theirs) + 1), np.inf)
    matches = np.zeros(best.shape, dtype=bool)
    best[0, 0] = 0
    for i, part in enumerate(ours):
        if part.branch:
            best[i + 1] = best[i] + costs[part.branch]
        for j, other in enumerate(theirs):
            if part.kinds == other.kinds and best[i, j] <= best[i + 1, j + 1]:
                best[i + 1, j + 1], matches[i + 1, j + 1] = best[i, j], True
    if not np.isfinite(best[-1, -1]):
        raise _no_match(ours, theirs, best)
    found: dict[int, int] = {}
    i, j = len(ours), len(theirs)
    while i:
        i -= 1
        if matches[i + 1, j]:
            j -= 1
            found[i] = j
    return dict(sorted(found.items()))


def _no_match(ours: list[_Part], theirs: list[_Part], best: np.ndarray) -> SiblingError:
    """Describe where the furthest attempt ended."""
    i, j = max(zip(*np.nonzero(np.isfinite(best)), strict=True), key=lambda at: (at[1], -at[0]))
    here = f"{ours[i].name} ({_words(ours[i])})" if i < len(ours) else "nothing more"
    there = f"{theirs[j].name} ({_words(theirs[j])})" if j < len(theirs) else "nothing more"
    kept = sum(part.branch is not None for part in ours), sum(part.branch is not None for part in theirs)
    return SiblingError(
        f"like= must be the same architecture with fewer residual branches: where the model has {here}, the "
        f"smaller one has {there}; the model has {kept[0]} removable branches, the smaller one {kept[1]}"
    )


def _words(part: _Part) -> str:
    """Describe a part by its first ops, with the sizes of their kernels."""
    told = [" ".join(map(str, filter(None, kind))) for kind in part.kinds]
    return ", ".join(told[:6] + ["..."] * (len(told) > 6))
