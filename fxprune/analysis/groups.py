"""From axes to groups: which atoms the weights carry, what each is, and what keeps it whole."""

from __future__ import annotations

import itertools
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fxprune.analysis.nesting import (
    _carriers,
    _Nesting,
    _nesting,
    _only_inside,
)
from fxprune.analysis.solver import Reason
from fxprune.analysis.tokens import is_channel
from fxprune.axes import Atom, Axis, Product, atoms_of

if TYPE_CHECKING:
    from fxprune.analysis.analysis import Analysis

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
    channels = is_channel(analysis)
    for a in sites:
        if a in born and a not in channels:
            solver.freeze(a, Reason("tokens: weights lie along it, none contracts it", kind="tokens"))
    twice = _used_twice(analysis)
    inside = _nesting(analysis)
    groups = {}
    for a, where in sites.items():
        frozen = solver.frozen(a)
        if frozen is None and a in twice:
            frozen = Reason("it occurs twice in one product of axes")
        if frozen is None and a not in born:
            frozen = Reason("only input data, no parameter, has this dimension")
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


def _role(a: Atom, group: Group, nesting: _Nesting, residual: set[Atom]) -> str:
    if group.frozen is not None and group.frozen.kind == "output":
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
