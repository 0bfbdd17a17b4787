"""The captured model with a weight on every channel of every group, another one for each sample.

Removing a channel shows in two places only: where an op sums over it (a linear layer, a convolution, an
attention product), and where a statistic is taken over it (a norm, a mean).  There, and nowhere else,
each term is multiplied by its channel's mask.  At masks of 0 and 1 this is the pruned model; in between
it is smooth, and its gradient says what a channel does.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, fx

from fxprune.analysis.analysis import Analysis, Group
from fxprune.choose.importance.copied import copied_operands
from fxprune.graph.op_names import op_name
from fxprune.graph.writes import writes_in_place
from fxprune.rules.axes import Atom, Axis, atoms_of, coordinates, with_batch
from fxprune.rules.calls import filled
from fxprune.rules.registry import Axes

__all__ = ["Differentiable", "Masks", "SoftMasked"]

# For each group [b, size], or [b, heads, size] where each head may keep other elements.
Masks = dict[Group, Tensor]


@dataclass(frozen=True)
class Use:
    """A node that sums over a group's channels: the operand that carries them, and its axes."""

    group: Group
    operand: fx.Node
    axes: Axes


class Differentiable(fx.Interpreter):
    """Runs a graph whose values have the derivatives of what is computed: nothing is detached."""

    def run_node(self, n: fx.Node) -> Any:
        if op_name(n.target) == "detach" and n.args:
            return self.env[cast(fx.Node, n.args[0])]
        return super().run_node(n)


class SoftMasked(Differentiable):
    """Runs the captured model under masks.  `uses` says which nodes apply which groups' masks."""

    def __init__(self, analysis: Analysis, groups: Sequence[Group]) -> None:
        super().__init__(analysis.module)
        self.analysis = analysis
        self.of_atom = {group.atom: group for group in groups}
        self.uses: dict[fx.Node, list[Use]] = {}
        self.statistics: dict[fx.Node, list[Use]] = {}
        for node, step in analysis.steps.items():
            uses = list(self._uses(node))
            if uses and step.is_statistic:
                self.statistics[node] = uses
            elif uses:
                self.uses[node] = uses
        self._indices: dict[Any, _Index] = {}
        self._writing = {n for n in self.graph.nodes if writes_in_place(n, analysis.module)}

    def forward(self, masks: Masks, size: int, *args: Any) -> Any:
        """Return the outputs for `size` samples; groups without a mask are whole."""
        self.masks, self.size = masks, size
        return self.run(*args)

    def groups_at(self, node: fx.Node) -> list[Group]:
        """Return the groups whose masks a node applies."""
        return [use.group for use in (*self.uses.get(node, ()), *self.statistics.get(node, ()))]

    def without_batch(self) -> set[Group]:
        """Return groups that are used where no sample is told from another (in an MLP over positions)."""
        everything = [use for uses in (*self.uses.values(), *self.statistics.values()) for use in uses]
        return {u.group for u in everything if not any(self._has_batch(axis) for axis in u.axes)}

    # ------------------------------------------------------------ running

    def run_node(self, n: fx.Node) -> Any:
        """Run a node; one that writes in place leaves the values before it, which are read again."""
        with copied_operands(self.env, n) if n in self._writing else contextlib.nullcontext():
            return self._run_masked(n)

    def _run_masked(self, n: fx.Node) -> Any:
        if any(use.group in self.masks for use in self.statistics.get(n, ())):
            return self._statistic(n)
        whole: dict[fx.Node, Any] = {}
        for use in self.uses.get(n, ()):
            if use.group in self.masks:
                whole.setdefault(use.operand, self.env[use.operand])
                self.env[use.operand] = self.env[use.operand] * self._mask(use)
        try:
            return super().run_node(n)
        finally:
            self.env.update(whole)

    def _statistic(self, node: fx.Node) -> Any:
        """Return a mean or norm over channels, each counted as much as its mask says."""
        step = self.analysis.steps[node]
        assert step.rule is not None
        function, source = step.rule.masked, step.source
        assert function is not None and source is not None
        masks = [self._mask(use) for use in self.statistics[node] if use.group in self.masks]
        mask = masks[0]
        for other in masks[1:]:
            mask = mask * other
        bound = filled(step.bound, self.env.__getitem__, self.fetch_attr)
        return function(mask=mask.to(self.env[source]), **bound)

    def _mask(self, use: Use) -> Tensor:
        """Return the group's mask as it lies along the operand: its shape, with 1 where nothing is masked."""
        return self._spread(use, self.masks[use.group])

    def _spread(self, use: Use, mask: Tensor) -> Tensor:
        key = (use.axes, use.group, self.size)
        if key not in self._indices:
            self._indices[key] = _Index.of(use.axes, use.group, self.size)
        return self._indices[key].spread(mask)

    # ------------------------------------------------------------ where masks apply

    def _uses(self, node: fx.Node) -> list[Use]:
        """Return the groups that a node sums over, each with the operand to mask."""
        step = self.analysis.steps[node]
        summed = {a for axis in step.flow.reduced for a in atoms_of(axis)} & self.of_atom.keys()
        found: dict[Atom, Use] = {}
        for operand in node.all_input_nodes if summed else ():
            for axes in self.analysis.axes.get(operand, [])[:1]:
                for a in summed.intersection(a for axis in axes for a in atoms_of(axis)):
                    use = Use(self.of_atom[a], operand, axes)
                    if self._is_better(use, found.get(a)):
                        found[a] = use
        return list(found.values())

    def _is_better(self, use: Use, than: Use | None) -> bool:
        """Is this operand to be masked, and not the other?  Of two factors, rather one with samples."""
        return than is None or (self._samples(use) and not self._samples(than))

    def _samples(self, use: Use) -> bool:
        return any(map(self._has_batch, use.axes))

    def _has_batch(self, axis: Axis) -> bool:
        return any(a.is_batch for a in atoms_of(axis))


@dataclass(frozen=True)
class _Index:
    """How a mask [b, size] or [b, heads, size] spreads along the axes of an operand.

    sample, head, element: the indices into the mask for each position of the operand, broadcastable.
    """

    sample: Tensor
    head: Tensor | None
    element: Tensor
    involved: Tensor | None  # False where a position belongs to another part of a concatenation

    @staticmethod
    def of(axes: Axes, group: Group, size: int) -> _Index:
        head = group.inside.atom if group.inside is not None else None
        wanted = {"sample": _SAMPLES, "head": head, "element": group.atom}
        found: dict[str, Tensor] = {}
        for dim, axis in enumerate(axes):
            places = _coordinates(axis, size)
            for role, a in wanted.items():
                if a in places:
                    shape = [-1 if d == dim else 1 for d in range(len(axes))]
                    found[role] = torch.from_numpy(places[a]).reshape(shape)
        element = found["element"]
        whole = bool((element >= 0).all())
        sample = found.get("sample", torch.zeros([1] * len(axes), dtype=torch.long))
        return _Index(sample, found.get("head"), element.clamp_min(0), None if whole else element >= 0)

    def spread(self, mask: Tensor) -> Tensor:
        places = (self.sample, self.element) if mask.ndim == 2 else (self.sample, self.head, self.element)
        full = mask[tuple(p.to(mask.device) for p in places if p is not None)]
        return full if self.involved is None else torch.where(self.involved.to(mask.device), full, 1.0)


# Stands for the batch of whichever tensor.
_SAMPLES = Atom(1)


def _coordinates(axis: Axis, size: int) -> dict[Atom, np.ndarray]:
    """Compute `axes.coordinates` at the true batch size, with the batch under one name."""
    return {_SAMPLES if a.is_batch else a: at for a, at in coordinates(with_batch(axis, size)).items()}
