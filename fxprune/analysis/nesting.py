"""Find which atoms stand outside and inside which others in the products of the weights."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import fx

from fxprune.analysis.typed_graph import TypedGraph, atoms_in
from fxprune.rules.axes import Atom, Axis, Product, Reason, Sum, atoms_of
from fxprune.rules.registry import Axes

__all__ = ["Carriers", "Nesting", "carriers_of", "nesting_of", "only_inside"]


@dataclass(frozen=True)
class Nesting:
    """Which atoms stand outside and inside which others in the products of the weights.

    nearest: what stands right outside an atom, at any of its places; None where nothing does.
    """

    outer: dict[Atom, set[Atom]]
    inner: dict[Atom, set[Atom]]
    nearest: dict[Atom, set[Atom | None]]

    def head(self, a: Atom) -> Atom | None:
        """Return the atom right outside this one at every site, if it is always the same."""
        found = self.nearest.get(a, set())
        return next(iter(found)) if len(found) == 1 else None


def nesting_of(graph: TypedGraph, frozen: Callable[[Atom], Reason | None]) -> Nesting:
    """Return the nesting of the atoms that may shrink."""
    nesting = Nesting(defaultdict(set), defaultdict(set), defaultdict(set))
    times = Counter[tuple[Atom, Atom]]()  # (outside, inside)

    def walk(axis: Axis, outside: tuple[Atom, ...]) -> None:
        if isinstance(axis, Atom):
            if frozen(axis) is None:
                nesting.outer[axis] |= set(outside)
                nesting.nearest[axis].add(outside[-1] if outside else None)
                for other in outside:
                    nesting.inner[other].add(axis)
                    times[other, axis] += 1
            return
        for part in axis.parts:
            walk(part, outside)
            if isinstance(axis, Product) and isinstance(part, Atom) and frozen(part) is None:
                outside = (*outside, part)

    for axes in graph.weights.values():
        for axis in axes:
            walk(axis, ())
    for (a, b), n in times.items():
        # Both ways: one projection reads (head_dim heads), the others (heads head_dim).  Most win.
        if n > times[b, a] > 0:
            nesting.outer[a].discard(b)
            nesting.inner[b].discard(a)
    for several in _contracted_together(graph):
        live = [a for a in several if frozen(a) is None]
        for i, a in enumerate(live):
            nesting.outer[a] |= set(live[:i])
            nesting.inner[a] |= set(live[i + 1 :])
    for read, written in _mapped(graph):  # a weight that was flattened: two widths, not one
        for a, b in ((read, written), (written, read)):
            nesting.outer[a].discard(b)
            nesting.inner[a].discard(b)
    return nesting


def _mapped(graph: TypedGraph) -> Iterator[tuple[Atom, Atom]]:
    """Return what a computed weight takes in, with what it brings out: atoms of two widths."""
    for node, step in graph.steps.items():
        weight = step.bound.get("weight") if step.flow.reduced else None
        if not isinstance(weight, fx.Node):
            continue
        carried, result = graph.carried(weight), graph.carried(node)
        summed = atoms_in(step.flow.reduced)
        yield from itertools.product(carried & summed, (carried & result) - summed)


def _contracted_together(graph: TypedGraph) -> Iterator[list[Atom]]:
    """Find dimensions of one weight that one op sums over, or brings in, at once (`b n c, c h d -> b n h d`).

    They are a product in all but layout, of which only one factor should shrink.
    """
    for node, sites in graph.operands.items():
        result = graph.carried(node)
        for _, own in itertools.groupby(sites, key=lambda site: site.name):
            axes = [graph.at(site) for site in own]
            atoms = [axis for axis in axes if isinstance(axis, Atom)]
            gone = [a for a in atoms if a not in result]
            if gone:
                yield gone
                yield [a for a in atoms if a in result]


@dataclass(frozen=True)
class Carriers:
    """For each atom, the weights' dimensions and the computed values that carry it."""

    dims: dict[Atom, list[Axis]]
    values: dict[Atom, list[Axes]]


def carriers_of(graph: TypedGraph) -> Carriers:
    found = Carriers(defaultdict(list), defaultdict(list))
    for axis in {axis for axes in graph.weights.values() for axis in axes}:
        for a in atoms_in([axis]):
            found.dims[a].append(axis)
    for axes in {axes for values in graph.axes.values() for axes in values}:
        for a in atoms_in(axes):
            found.values[a].append(axes)
    return found


def only_inside(a: Atom, head: Atom | None, carriers: Carriers) -> bool:
    """Does every value that carries the atom carry the head outside it?

    Only then may each head keep indices of its own: a norm's weight or a rotary table that carries the
    head dim alone, a mixing of heads, or a (head_dim heads) layout ties all heads to the same choice.
    """
    if not all(_outside(head, a, axis) for axis in carriers.dims[a]):
        return False
    for axes in carriers.values[a]:
        parts = [set(atoms_of(axis)) for axis in axes]
        if not any(head in part for part in parts):
            return False
        mixed = (axis for axis, part in zip(axes, parts, strict=True) if a in part and head in part)
        if not all(_outside(head, a, axis) for axis in mixed):
            return False
    return True


def _outside(head: Atom | None, a: Atom, axis: Axis) -> bool:
    """Does each occurrence of `a` in the axis have `head` outside it?"""
    if isinstance(axis, Atom):
        return axis is not a
    if isinstance(axis, Sum):
        return all(_outside(head, a, part) for part in axis.parts)
    for part in axis.parts:
        if part is head:
            return True
        if not _outside(head, a, part):
            return False
    return True
