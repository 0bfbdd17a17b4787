"""From axes to groups: which atoms the weights carry, what each is, and what keeps it whole."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import fx

from fxprune.axes import Atom, Axis, Product, Reason, Sum, atoms_of
from fxprune.rules.registry import Axes

if TYPE_CHECKING:
    from fxprune.analysis import Analysis

__all__ = ["Group", "Site", "build_groups"]


@dataclass(frozen=True, order=True)
class Site:
    """A place in the weights that carries an axis: a name in `state_dict` and a dimension."""

    name: str
    dim: int

    def __str__(self) -> str:
        return f"{self.name}[{self.dim}]"


@dataclass(eq=False)
class Group:
    """All that carries one atom, and so shrinks together.

    name: unique and readable, e.g. `blocks.3.attn.heads`.
    size: number of elements.
    role: what it is: embed, hidden, heads, head_dim, groups, ...
    sites: the weights' dimensions that carry it.
    frozen: why it must stay whole, or None.
    """

    name: str
    role: str
    atom: Atom
    sites: list[Site]
    frozen: Reason | None
    inside: Group | None = None  # the heads group that lets each head keep other indices of this one
    outer: list[Group] = field(default_factory=list)  # live groups outside it in a product
    inner: list[Group] = field(default_factory=list)  # live groups inside it in a product

    @property
    def size(self) -> int:
        return self.atom.size

    def __repr__(self) -> str:
        state = "whole" if self.frozen else "prunable"
        return f"Group({self.name!r}, size={self.size}, sites={len(self.sites)}, {state})"


def build_groups(analysis: Analysis) -> list[Group]:
    """One group per atom that some weight carries, in the order in which the model uses them."""
    solver = analysis.inference.solver
    sites: dict[Atom, list[Site]] = defaultdict(list)
    constants = {name: name for name in analysis.weights if name not in analysis.names}
    for name, used in {**analysis.names, **constants}.items():
        for dim, axis in enumerate(analysis.weights[used]):
            for a in dict.fromkeys(atoms_of(axis)):
                sites[a].append(Site(name, dim))
    born = _born(analysis)
    twice = _used_twice(analysis)
    inside = _nesting(analysis)
    groups = {}
    for a, where in sites.items():
        frozen = solver.frozen(a)
        if frozen is None and a in twice:
            frozen = Reason("it comes twice in one product")
        if frozen is None and a not in born:
            frozen = Reason("no weight brings it into an activation: it carries data")
        groups[a] = Group("", "", a, where, frozen)
    for a, group in groups.items():
        group.outer = _live(groups, inside.outer[a])
        group.inner = _live(groups, inside.inner[a])
    residual, carriers = _residual(analysis), _carriers(analysis)
    for a, group in groups.items():
        group.role = _role(a, group, inside, residual)
        head = inside.head(a)
        if head in groups and groups[head].frozen is None and group.frozen is None:
            group.inside = groups[head] if _only_inside(a, head, carriers) else None
    _name(list(groups.values()))
    return list(groups.values())


def _live(groups: dict[Atom, Group], atoms: set[Atom]) -> list[Group]:
    found = (groups[a] for a in sorted(atoms, key=lambda a: a.serial) if a in groups)
    return [group for group in found if group.frozen is None]


def _born(analysis: Analysis) -> set[Atom]:
    """Atoms that some parameter brings into the graph: a node's result carries them on from it.

    The rest are only summed over (the coordinates that a position MLP reads): data, not channels.
    """
    parameters = {name for name, _ in analysis.module.named_parameters(remove_duplicate=False)}
    born: set[Atom] = set()
    for node, sites in analysis._operands.items():
        result = {a for axes in analysis.axes[node] for axis in axes for a in analysis._atoms(axis)}
        for site in sites:
            if site.name in parameters:
                born |= analysis._atoms(analysis.weights[site.name][site.dim]) & result
    return born


def _used_twice(analysis: Analysis) -> set[Atom]:
    """Atoms that meet themselves in one product: their elements can't be chosen independently."""

    def factors(axis: Axis) -> list[Atom]:
        if isinstance(axis, Atom):
            return [axis]
        seen = [a for part in axis.parts for a in dict.fromkeys(factors(part))]
        if isinstance(axis, Product):
            repeated.update(a for a in seen if seen.count(a) > 1)
        return seen

    repeated: set[Atom] = set()
    everything = [
        *analysis.weights.values(),
        *(axes for values in analysis.axes.values() for axes in values),
    ]
    for axis in {axis for axes in everything for axis in axes}:
        factors(axis)
    return repeated


@dataclass
class _Nesting:
    """Which atoms stand outside and inside which others in the products of the weights."""

    outer: dict[Atom, set[Atom]]
    inner: dict[Atom, set[Atom]]
    nearest: dict[Atom, set[Atom | None]]

    def head(self, a: Atom) -> Atom | None:
        """The atom right outside this one at every site, if it is always the same."""
        found = self.nearest.get(a, set())
        return next(iter(found)) if len(found) == 1 else None


def _nesting(analysis: Analysis) -> _Nesting:
    nesting = _Nesting(defaultdict(set), defaultdict(set), defaultdict(set))
    frozen = analysis.inference.solver.frozen

    def walk(axis: Axis, outside: tuple[Atom, ...]) -> None:
        if isinstance(axis, Atom):
            if frozen(axis) is None:
                nesting.outer[axis] |= set(outside)
                nesting.nearest[axis].add(outside[-1] if outside else None)
                for other in outside:
                    nesting.inner[other].add(axis)
            return
        for part in axis.parts:
            walk(part, outside)
            if isinstance(axis, Product) and isinstance(part, Atom) and frozen(part) is None:
                outside = (*outside, part)

    for axes in analysis.weights.values():
        for axis in axes:
            walk(axis, ())
    for several in _contracted_together(analysis):
        live = [a for a in several if frozen(a) is None]
        for i, a in enumerate(live):
            nesting.outer[a] |= set(live[:i])
            nesting.inner[a] |= set(live[i + 1 :])
    for read, written in _mapped(analysis):  # a weight that was flattened: two widths, not one
        for a, b in ((read, written), (written, read)):
            nesting.outer[a].discard(b)
            nesting.inner[a].discard(b)
    return nesting


def _mapped(analysis: Analysis) -> Iterator[tuple[Atom, Atom]]:
    """What a computed weight takes in, with what it brings out: atoms of two widths."""
    for node, step in analysis.inference.steps.items():
        weight = step.call.bind(step.rule).get("weight") if step.rule and step.flow.sums else None
        if not isinstance(weight, fx.Node):
            continue
        carried = _atoms_of_all(analysis, (axis for axes in analysis.axes.get(weight, []) for axis in axes))
        summed = _atoms_of_all(analysis, map(analysis.inference.solver.resolve, step.flow.sums))
        result = _atoms_of_all(analysis, (axis for axes in analysis.axes[node] for axis in axes))
        yield from itertools.product(carried & summed, (carried & result) - summed)


def _atoms_of_all(analysis: Analysis, axes: Iterable[Axis]) -> set[Atom]:
    return {a for axis in axes for a in analysis._atoms(axis)}


def _contracted_together(analysis: Analysis) -> Iterator[list[Atom]]:
    """Dimensions of one weight that one op sums over, or brings in, at once (`b n c, c h d -> b n h d`):
    a product in all but layout, of which only one factor should shrink."""
    for node, sites in analysis._operands.items():
        result = {a for axes in analysis.axes[node] for axis in axes for a in analysis._atoms(axis)}
        for _, own in itertools.groupby(sites, key=lambda site: site.name):
            axes = [analysis.weights[site.name][site.dim] for site in own]
            atoms = [axis for axis in axes if isinstance(axis, Atom)]
            gone = [a for a in atoms if a not in result]
            if gone:
                yield gone
                yield [a for a in atoms if a in result]


@dataclass
class _Carriers:
    """For each atom, the weights' dimensions and the computed values that carry it."""

    dims: dict[Atom, list[Axis]]
    values: dict[Atom, list[Axes]]


def _carriers(analysis: Analysis) -> _Carriers:
    found = _Carriers(defaultdict(list), defaultdict(list))
    for axis in {axis for axes in analysis.weights.values() for axis in axes}:
        for a in analysis._atoms(axis):
            found.dims[a].append(axis)
    for axes in {axes for values in analysis.axes.values() for axes in values}:
        for a in {a for axis in axes for a in analysis._atoms(axis)}:
            found.values[a].append(axes)
    return found


def _only_inside(a: Atom, head: Atom | None, carriers: _Carriers) -> bool:
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


def _role(a: Atom, group: Group, nesting: _Nesting, residual: set[Atom]) -> str:
    if group.frozen is not None and group.frozen.text == "reaches the output":
        return "output"
    if group.frozen is not None:
        return "whole"
    inner = {b for b in nesting.inner[a]}
    if inner:
        return "heads"
    if nesting.outer[a]:
        return "head_dim"
    return "embed" if a in residual else "hidden"


def _residual(analysis: Analysis) -> set[Atom]:
    """Atoms along which two computed values are added: residual streams."""
    out: set[Atom] = set()
    for node, step in analysis.inference.steps.items():
        if step.call.op != "add":
            continue
        operands = [n for n in node.all_input_nodes if n.op not in ("get_attr", "placeholder")]
        if len(operands) == 2:
            carried = [
                {a for axes in analysis.axes[n] for x in axes for a in analysis._atoms(x)} for n in operands
            ]
            out |= carried[0] & carried[1]
    return out


def _name(groups: list[Group]) -> None:
    """module.path.role, numbered where that is not unique."""
    taken: dict[str, int] = defaultdict(int)
    for group in groups:
        prefix = _common_module([site.name for site in group.sites])
        base = f"{prefix}.{group.role}" if prefix else group.role
        taken[base] += 1
        group.name = base if taken[base] == 1 else f"{base}{taken[base]}"


def _common_module(names: list[str]) -> str:
    """The longest module path that all names share."""
    paths = [name.split(".")[:-1] for name in names]
    shared = itertools.takewhile(lambda column: len(set(column)) == 1, zip(*paths, strict=False))
    return ".".join(column[0] for column in shared)
