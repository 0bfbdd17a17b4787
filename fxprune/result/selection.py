"""Kept elements of atoms, and what they mean for a whole axis: positions, sizes, masks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import cast

import numpy as np
import torch
from torch import LongTensor, Tensor

from fxprune.analysis.analysis import Analysis, Group
from fxprune.errors import PlanError
from fxprune.result.plan import Kept, Plan
from fxprune.rules.axes import ONE, Atom, Axis, Product, Sum, atoms_of, coordinates

__all__ = ["Selection"]


class Selection:
    """For each shrinking atom, a mask over its elements: bool [size], or [heads, size]."""

    def __init__(self, masks: dict[Atom, np.ndarray], heads: dict[Atom, Atom]) -> None:
        self.masks = masks
        self.heads = heads  # atom with a choice per head -> the atom of its heads
        self._positions: dict[Axis, np.ndarray | None] = {}

    @staticmethod
    def of(analysis: Analysis, kept: dict[Group, Tensor]) -> Selection:
        """Make a selection of the kept indices of each shrinking group."""
        masks: dict[Atom, np.ndarray] = {}
        heads: dict[Atom, Atom] = {}
        for group, indices in kept.items():
            mask = np.zeros((*indices.shape[:-1], group.size), dtype=bool)
            np.put_along_axis(mask, indices.numpy(), True, axis=-1)
            masks[group.atom] = mask
            if mask.ndim == 2 and group.inside is not None:
                heads[group.atom] = group.inside.atom
        return Selection(masks, heads)

    @staticmethod
    def from_plan(analysis: Analysis, plan: Plan) -> Selection:
        """Return a plan's choice on an analysed model.  Raises PlanError if it belongs to another one."""
        known = {group.name: group for group in analysis.groups}
        kept: dict[Group, Tensor] = {}
        for name, choice in plan.groups.items():
            group = known.get(name)
            if group is None:
                raise PlanError(f"the plan is for another model: this one has no group {name!r}")
            if group.size != choice.size:
                raise PlanError(
                    f"the plan is for another model: {name} has {group.size} elements, not {choice.size}"
                )
            if group.frozen is not None:
                raise PlanError(f"{name} is frozen in this model: {group.frozen}")
            if choice.indices.ndim == 2 and (
                group.inside is None or group.inside.size != choice.indices.shape[0]
            ):
                raise PlanError(
                    f"{name} can't keep other indices in each of {choice.indices.shape[0]} heads here"
                )
            if choice.count == 0 or int(choice.indices.min()) < 0 or int(choice.indices.max()) >= group.size:
                raise PlanError(f"{name}: kept indices must be within 0..{group.size - 1}, and at least one")
            kept[group] = choice.indices
        return Selection.of(analysis, kept)

    def shrinks(self, axis: Axis) -> bool:
        """Does any atom of the axis lose elements?"""
        return any(a in self.masks for a in atoms_of(axis))

    def positions(self, axis: Axis) -> np.ndarray | None:
        """Return the kept positions along an axis, sorted; None for all of them."""
        if axis not in self._positions:
            keep = self._keep(axis)
            self._positions[axis] = None if keep is None else np.flatnonzero(keep)
        return self._positions[axis]

    def size(self, axis: Axis) -> int:
        """Return the number of elements that an axis is left with."""
        if isinstance(axis, Product):
            return math.prod(map(self.size, axis.parts))
        if isinstance(axis, Sum):
            return sum(map(self.size, axis.parts))
        mask = self.masks.get(axis)
        return axis.size if mask is None else int(np.atleast_2d(mask)[0].sum())

    def mask(self, axes: Sequence[Axis]) -> Tensor | None:
        """Make a mask, true where a tensor's element is kept: bool [n or 1, ...]; None if all are kept."""
        if not any(map(self.shrinks, axes)):
            return None
        again = self._repeated(axes)
        if again is not None:  # the covariance of channels: each dimension chooses for itself
            return self._both(axes, again)
        choosers = set(self.heads.values())  # even where all heads stay, each keeps elements of its own
        live = [self.shrinks(axis) or not choosers.isdisjoint(atoms_of(axis)) for axis in axes]
        keep = self._keep(Product.of(a for a, counts in zip(axes, live, strict=True) if counts))
        shape = [a.size if counts else 1 for a, counts in zip(axes, live, strict=True)]
        return torch.from_numpy(np.asarray(keep)).reshape(shape)

    def _repeated(self, axes: Sequence[Axis]) -> int | None:
        """Return a dimension whose shrinking atoms an earlier one has too, if there is one."""
        seen: set[Atom] = set()
        for d, axis in enumerate(axes):
            own = {a for a in atoms_of(axis) if a in self.masks}
            if own & seen:
                return d
            seen |= own
        return None

    def _both(self, axes: Sequence[Axis], again: int) -> Tensor | None:
        """Make the mask of a tensor as one for a dimension that repeats atoms, and one for the others."""
        own = {a for a in atoms_of(axes[again]) if a in self.masks}
        others = self.mask([ONE if d == again else axis for d, axis in enumerate(axes)])
        alone = [axis if d == again or own.isdisjoint(atoms_of(axis)) else ONE for d, axis in enumerate(axes)]
        mask = self.mask(alone)
        return others & mask if others is not None and mask is not None else mask

    def _keep(self, axis: Axis) -> np.ndarray | None:
        if axis == ONE or not self.shrinks(axis):
            return None
        where = coordinates(axis)
        keep = np.ones(axis.size, dtype=bool)
        for a, index in where.items():
            mask = self.masks.get(a)
            if mask is None:
                continue
            inside = index >= 0
            chosen = mask[index] if mask.ndim == 1 else mask[where[self.heads[a]], index]
            keep &= chosen | ~inside
        return keep

    def plan(self, analysis: Analysis) -> Plan:
        """Return the selection as data: what each group keeps."""
        groups = {
            group.name: Kept(group.size, _indices(self.masks[group.atom]))
            for group in analysis.groups
            if group.atom in self.masks
        }
        return Plan(groups, removed=analysis.removed, regrouped=dict(analysis.regrouped))

    def kept(self, analysis: Analysis, saved: Iterable[str]) -> dict[str, tuple[LongTensor | None, ...]]:
        """Return what each weight keeps, for the names in the original's `state_dict`: `Plan.kept`."""
        kept: dict[str, tuple[LongTensor | None, ...]] = {}
        for name in saved:
            used = analysis.names.get(name)
            dims = [self.positions(axis) for axis in analysis.weights.get(used or "", ())]
            if any(d is not None for d in dims):
                kept[name] = tuple(None if d is None else cast(LongTensor, torch.from_numpy(d)) for d in dims)
        return kept


def _indices(mask: np.ndarray) -> Tensor:
    return torch.from_numpy(np.nonzero(mask)[-1].reshape(*mask.shape[:-1], -1))
