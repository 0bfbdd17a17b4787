"""Positions: one axis in one dimension of one tensor of a typed graph, in one part of it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from torch import Tensor, fx

from fxprune.analysis.infer import Step
from fxprune.analysis.typed_graph import TypedGraph, atoms_in
from fxprune.graph.nests import leaves
from fxprune.graph.tensors import tensor_at
from fxprune.rules.axes import Atom, Axis, Product, atoms_of
from fxprune.rules.calls import Weight
from fxprune.rules.registry import Axes, dims_of

__all__ = ["Key", "Operand", "Part", "Position", "Tensors", "labelled_in", "times_in"]

Part = tuple[tuple[Atom, int], ...]
Key = str | tuple[fx.Node, int]
_SOURCES: tuple[type[fx.Node | Weight], ...] = (fx.Node, Weight)
PARTS = 8  # an axis of more elements is not taken apart by index: 3 of qkv are, 197 tokens are not
TOGETHER = 64  # choices of indices for one call; where there are more, its axes are only permuted


@dataclass(frozen=True)
class Position:
    """An atom in a dimension of a tensor: a weight by its name, or the n-th value that a node returns.

    part: at which index of the atoms that ops take apart by index (of (3 heads head_dim), which of three).
    run: which of its places in the dimension (of [q | k], one atom in two parts).
    """

    key: Key
    dim: int
    atom: Atom
    part: Part
    run: int = 0


@dataclass(frozen=True)
class Operand:
    """A tensor that an op reads or makes."""

    key: Key
    axes: Axes

    def dims(self, a: Atom) -> list[int]:
        return [d for d, axis in enumerate(self.axes) if axis is a or times_in(axis, a)]


def times_in(axis: Axis, a: Atom) -> int:
    """Return how often an atom occurs in an axis."""
    return int(axis is a) if isinstance(axis, Atom) else list(atoms_of(axis)).count(a)


class Tensors:
    """The tensors of a typed graph: which ones a call reads, and in which parts they come."""

    def __init__(self, graph: TypedGraph) -> None:
        self.graph = graph
        by_tensor: dict[int, str] = {}
        self._names = {
            name: by_tensor.setdefault(id(tensor_at(graph.module, name)), name) for name in graph.weights
        }
        self.picks = {node: picks for node, step in graph.steps.items() if (picks := _picks(step, graph))}
        self._parted = {a for picks in self.picks.values() for a, _ in picks if a.size <= PARTS}

    def weight(self, name: str) -> Operand:
        """Return a weight, under one of its names."""
        return Operand(self._names[name], self.graph.weights[name])

    def value(self, node: fx.Node) -> list[Operand]:
        """Return the tensors that a node returns."""
        if node.op == "get_attr" and str(node.target) in self._names:
            return [self.weight(str(node.target))]
        return [Operand((node, i), axes) for i, axes in enumerate(self.graph.axes.get(node, ()))]

    def read(self, step: Step) -> list[Operand]:
        """Return the tensors that a call is given, in the order of its rule's arguments."""
        if step.rule is None:
            return []
        found: list[Operand] = []
        for leaf in leaves(step.bound, _SOURCES):
            found += [self.weight(leaf.name)] if isinstance(leaf, Weight) else self.value(leaf)
        return found

    def parts(self, operands: Sequence[Operand]) -> Iterator[Mapping[Atom, int]] | None:
        """Return every choice of an index for each atom taken apart that some tensor has; None: too many."""
        atoms = [a for a in dict.fromkeys(self._atoms(operands)) if a in self._parted]
        if math.prod(a.size for a in atoms) > TOGETHER:
            return None
        ranges = itertools.product(*(range(a.size) for a in atoms))
        return (dict(zip(atoms, choice, strict=True)) for choice in ranges)

    def part(self, operand: Operand, dim: int, a: Atom, run: int, choice: Mapping[Atom, int]) -> Part:
        """Restrict a choice to the atoms that every element along one run of an atom has."""
        having = [b for b in choice if _labels(operand.axes, dim, a, run, b)]
        return tuple((b, choice[b]) for b in sorted(having, key=lambda b: b.serial))

    def _atoms(self, operands: Sequence[Operand]) -> Iterator[Atom]:
        for operand in operands:
            yield from sorted(atoms_in(operand.axes) & self._parted, key=lambda a: a.serial)


def labelled_in(axes: Axes, dim: int, a: Atom, run: int, label: Atom) -> int | None:
    """Find in which dimension each element along a run of an atom has an index of another: its own first."""
    if _beside(axes[dim], a, run, label):
        return dim
    others = [d for d, axis in enumerate(axes) if d != dim and label in atoms_of(axis)]
    if len(others) != 1 or times_in(axes[others[0]], label) != 1:
        return None
    return others[0] if _covers(axes[others[0]], label) else None


@lru_cache(maxsize=1 << 14)
def _labels(axes: Axes, dim: int, a: Atom, run: int, label: Atom) -> bool:
    """Return whether each element along a run of an atom has one index of another atom."""
    if sum(times_in(axis, label) for axis in axes) != 1:
        return False
    if any(_covers(axis, label) for d, axis in enumerate(axes) if d != dim):
        return True
    return _beside(axes[dim], a, run, label)


def _covers(axis: Axis, label: Atom) -> bool:
    """Return whether all elements of an axis have an index of an atom: none lies in another part of a sum."""
    if isinstance(axis, Atom):
        return axis is label
    parts = (_covers(part, label) for part in axis.parts)
    return any(parts) if isinstance(axis, Product) else all(parts)


def _beside(axis: Axis, a: Atom, run: int, label: Atom) -> bool:
    if isinstance(axis, Atom):
        return False
    for i, part in enumerate(axis.parts):
        count = times_in(part, a)
        if run < count:
            others = (*axis.parts[:i], *axis.parts[i + 1 :]) if isinstance(axis, Product) else ()
            return any(_covers(other, label) for other in others) or _beside(part, a, run, label)
        run -= count
    return False


def _picks(step: Step, graph: TypedGraph) -> list[tuple[Atom, int | None]]:
    """Find which single index of which atom a call takes; None: result i is what lies at index i."""
    if step.rule is None or step.call.op.removesuffix("_copy") not in ("unbind", "select", "getitem"):
        return []
    bound = step.bound
    source = bound.get("input")
    if not isinstance(source, fx.Node) or not isinstance(source.meta.get("val"), Tensor):
        return []
    axes = graph.axes[source][0]
    op = step.call.op.removesuffix("_copy")
    if op == "getitem":
        return list(_indexed(bound.get("index"), axes))
    dim = bound.get("dim", 0)
    axis = axes[dims_of(dim, len(axes))[0]] if isinstance(dim, int) else None
    index = None if op == "unbind" else bound.get("index")
    if not isinstance(axis, Atom) or not (index is None or isinstance(index, int)):
        return []
    return [(axis, None if index is None else index % axis.size)]


def _indexed(index: object, axes: Axes) -> Iterator[tuple[Atom, int]]:
    entries = list(index) if isinstance(index, tuple) else [index]
    used = sum(not (e is None or e is Ellipsis) for e in entries)
    dim = 0
    for entry in entries:
        if entry is Ellipsis:
            dim += len(axes) - used
        elif entry is not None:
            axis: Axis = axes[dim]
            if isinstance(entry, int) and not isinstance(entry, bool) and isinstance(axis, Atom):
                yield axis, entry % axis.size
            dim += 1
