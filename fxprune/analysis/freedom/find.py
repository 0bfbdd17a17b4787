"""Find the regions of every axis that may shrink: what changes by one matrix, and which it may be."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from fxprune.analysis.freedom.constrain import Constraints, Multiplied, constraints_of
from fxprune.analysis.freedom.coupling import Coupled
from fxprune.analysis.freedom.positions import Position
from fxprune.analysis.freedom.regions import Fold, Freedom, Place, Region
from fxprune.analysis.typed_graph import TypedGraph
from fxprune.graph.tensors import tensor_at
from fxprune.rules.axes import ONE, Atom, Axis, Product, Reason, Sum, atoms_of

__all__ = ["Regions"]

SMALLEST = 1e-6  # a vector is divided by if its smallest element is more than this part of its largest


@dataclass(frozen=True, eq=False)
class Regions:
    """The regions of all atoms of a graph that may shrink, found when they are asked for first.

    By then a vector of the model may hold other numbers than when the graph was made: what counts is whether
    it can be divided by now.
    """

    graph: TypedGraph
    live: frozenset[Atom]

    @cached_property
    def by_atom(self) -> Mapping[Atom, tuple[Region, ...]]:
        return _regions_of(self.graph, self.live)


def _regions_of(graph: TypedGraph, live: frozenset[Atom]) -> dict[Atom, tuple[Region, ...]]:
    """Return the regions of each atom that may shrink, in the order in which the model uses their weights."""
    found = constraints_of(graph, live)
    waiting = _added_up(found)
    for known in found.coupling.classes().values():
        for reason in known.sums:
            known.limit(Freedom.ROTATION, reason, centred=True)
    folder = _Folder(found)
    for product in waiting:
        folder.fold(product)
    return folder.regions()


def _added_up(found: Constraints) -> list[Multiplied]:
    """Read products whose every use adds them up along the axis as inner products; return the others."""
    coupling = found.coupling
    by_class: dict[Hashable, list[Multiplied]] = defaultdict(list)
    for product in found.products:
        by_class[coupling.find(product.out)[0]].append(product)
    plain = {
        root
        for root in by_class
        if not (known := coupling.of(root)).touched
        and not known.weights
        and known.sums
        and not known.products
    }
    for root in plain:
        coupling.of(root).sums.clear()
        for product in by_class[root]:
            for side in (product.left, product.right):
                coupling.of(side).products -= 1
    for root in plain:
        for product in by_class[root]:
            coupling.join(product.left, product.right, product.reason, opposite=True)
    return [p for root, products in by_class.items() if root not in plain for p in products]


class _Folder:
    """Moves vectors that are multiplied along an axis into weights beside them, where that can be done."""

    def __init__(self, found: Constraints) -> None:
        self.found, self.coupling = found, found.coupling
        self.folds: list[tuple[Position, Fold]] = []
        self.ones: set[Hashable] = set()  # classes of the vectors that are ones after that

    def fold(self, product: Multiplied) -> None:
        """Fold one of two factors if it is a vector, else leave both to permutations."""
        refused: Reason | None = product.reason
        for vector, value in ((product.right, product.left), (product.left, product.right)):
            if self._is_vector(vector):
                refused = self._into(vector, value, product)
                break
        if refused is not None:
            for position in (product.left, product.right, product.out):
                self.coupling.of(position).limit(Freedom.PERMUTATION, refused)

    def _is_vector(self, position: Position) -> bool:
        """Return whether a factor is a vector that a model holds, and uses for this alone."""
        known = self.coupling.of(position)
        single = len(known.weights) == 1 and known.products == 1 and not known.sums
        if not single or known.touched or known.freedom is not Freedom.ANY:
            return False
        (weight,) = known.weights
        assert isinstance(weight, Position) and isinstance(weight.key, str)
        axes = self.found.graph.weights[weight.key]
        return not weight.part and all(axis == ONE for d, axis in enumerate(axes) if d != weight.dim)

    def _into(self, vector: Position, value: Position, product: Multiplied) -> Reason | None:
        """Fold a vector into what lies behind it or before it, or return why that can't be done."""
        (weight,) = self.coupling.of(vector).weights
        assert isinstance(weight, Position) and isinstance(weight.key, str)
        axis = self.found.graph.weights[weight.key][weight.dim]
        alike = _has_factors(axis, weight.atom)
        before, after = self.coupling.find(value), self.coupling.find(product.out)
        if before[0] == after[0]:
            return replace(product.reason, text=f"{product.reason.text} (on two ways to the same weights)")
        refused = replace(product.reason, text=f"{product.reason.text} by {weight.key}")
        for (root, side), power in ((after, -1), (before, 1)):
            known = self.coupling.of(root)
            if known.freedom is not Freedom.ANY or not known.weights or (alike and known.trees != {axis}):
                continue
            places = tuple(
                _place(p, power * side * self.coupling.find(p)[1])
                for p in known.weights
                if isinstance(p, Position)
            )
            if any(p.side < 0 for p in places) and not _can_divide(
                tensor_at(self.found.graph.module, weight.key)
            ):
                refused = replace(product.reason, text=f"{weight.key} has zeros, and can't be folded")
                continue
            if alike and any(place.part or place.run != weight.run for place in places):
                continue
            fold = Fold(_place(weight, 1), weight.atom, places, alike)
            self.folds.append((value, fold))
            self.ones.add(self.coupling.find(vector)[0])
            self.coupling.join(value, product.out, product.reason)
            return None
        return refused

    def regions(self) -> dict[Atom, tuple[Region, ...]]:
        """Return what was found, by atom."""
        folds: dict[Hashable, list[Fold]] = defaultdict(list)
        for position, fold in self.folds:
            folds[self.coupling.find(position)[0]].append(fold)
        order = {name: i for i, name in enumerate(self.found.graph.weights)}
        found: dict[Atom, list[Region]] = defaultdict(list)
        for root, known in self.coupling.classes().items():
            weights = [p for p in known.weights if isinstance(p, Position)]
            if not weights or root in self.ones:
                continue
            weights.sort(key=lambda p: (order[str(p.key)], p.dim, [i for _, i in p.part], p.run))
            found[weights[0].atom].append(self._region(weights, known, folds[root]))
        return {a: tuple(sorted(regions, key=lambda r: _first(r, order))) for a, regions in found.items()}

    def _region(self, weights: Sequence[Position], known: Coupled, folds: Sequence[Fold]) -> Region:
        first = self.coupling.find(weights[0])[1]
        places = tuple(_place(p, first * self.coupling.find(p)[1]) for p in weights)
        centred = known.centred and known.freedom is Freedom.ROTATION
        return Region(known.freedom, centred, known.reason, places, tuple(folds))


def _first(region: Region, order: Mapping[str, int]) -> tuple[int, int, list[int], int]:
    place = region.places[0]
    return order[place.name], place.dim, [i for _, i in place.part], place.run


def _place(position: Position, side: int) -> Place:
    return Place(str(position.key), position.dim, position.part, position.run, side)


def _has_factors(axis: Axis, a: Atom) -> bool:
    """Return whether an atom stands in a product with others, rather than alone or as part of a sum."""
    if isinstance(axis, Product):
        return a in atoms_of(axis)
    return isinstance(axis, Sum) and any(_has_factors(part, a) for part in axis.parts)


def _can_divide(tensor: Tensor) -> bool:
    """Return whether a vector can be inverted: no element so small that its inverse drowns other terms."""
    if tensor.is_meta or not tensor.is_floating_point():
        return tensor.is_floating_point()
    size, least = tensor.detach().abs(), max(SMALLEST, torch.finfo(tensor.dtype).eps)
    return bool(size.min() > least * size.max()) if size.numel() else False
