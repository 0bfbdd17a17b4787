"""From axes to groups: which atoms the weights carry, what each is, and what freezes it."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from fxprune.analysis.freedom.find import Regions
from fxprune.analysis.freedom.regions import Freedom, Region
from fxprune.analysis.nesting import Nesting, carriers_of, nesting_of, only_inside
from fxprune.analysis.tokens import is_channel
from fxprune.analysis.typed_graph import Site, TypedGraph
from fxprune.rules.axes import Atom, Axis, Product, Reason, atoms_of

__all__ = ["Group", "build_groups", "renamed"]


@dataclass(frozen=True, eq=False)
class Group:
    """All that carries one atom, and so shrinks together.

    name: unique and readable, e.g. `blocks.3.attn.heads`.
    role: what it is: embed, hidden, heads, head_dim; output or frozen if it may not shrink.
    sites: the weights' dimensions that carry it.
    frozen: why it may not shrink, or None.
    inside: the heads group that lets each head keep other indices of this one.
    outer, inner: live groups outside and inside it in a product.
    changes: finds the regions of all groups when they are asked for; None for a group that is gone.
    """

    name: str
    role: str
    atom: Atom
    sites: tuple[Site, ...]
    frozen: Reason | None
    changes: Regions | None = None
    inside: Group | None = field(default=None, init=False)
    outer: tuple[Group, ...] = field(default=(), init=False)
    inner: tuple[Group, ...] = field(default=(), init=False)

    @property
    def size(self) -> int:
        """Number of elements."""
        return self.atom.size

    @property
    def regions(self) -> tuple[Region, ...]:
        """Its parts that change by a matrix of their own, and which matrices each allows."""
        return self.changes.by_atom.get(self.atom, ()) if self.changes is not None else ()

    @property
    def freedom(self) -> Freedom:
        """Which changes of basis all of it allows: none, permutations, rotations, or any matrix."""
        if self.frozen is not None:
            return Freedom.NONE
        return min((r.freedom for r in self.regions), default=Freedom.PERMUTATION)

    @property
    def limited_by(self) -> Reason | None:
        """What does not let it change by any matrix; None if it may."""
        if self.frozen is not None:
            return self.frozen
        return next((r.limited_by for r in self.regions if r.freedom is self.freedom), None)

    @property
    def why(self) -> str:
        """Why it is frozen, or what limits its freedom, in words; empty if nothing does."""
        if self.frozen is not None:
            return f"frozen: {self.frozen.brief}"
        return self.limited_by.brief if self.limited_by is not None else ""

    @property
    def bases(self) -> dict[str, Region]:
        """The regions that a matrix may change, by the names that `fxprune.rebase` takes."""
        if len(self.regions) == 1:
            named = {self.name: self.regions[0]}
        else:
            named = {f"{self.name}:{i}": region for i, region in enumerate(self.regions)}
        return {name: region for name, region in named.items() if region.freedom >= Freedom.ROTATION}

    def __repr__(self) -> str:
        state = "frozen" if self.frozen else "prunable"
        return f"Group({self.name!r}, size={self.size}, sites={len(self.sites)}, {state})"


@dataclass(frozen=True)
class _Links:
    """How one group stands to the others, by their atoms."""

    inside: Atom | None
    outer: tuple[Atom, ...]
    inner: tuple[Atom, ...]


def build_groups(graph: TypedGraph) -> tuple[Group, ...]:
    """Return one group per atom that some weight carries, in the order in which the model uses them."""
    sites = _sites(graph)
    frozen = _reasons(graph, sites)

    def live(a: Atom | None) -> bool:
        return a in sites and frozen[a] is None

    nesting = nesting_of(graph, lambda a: frozen[a] if _is_tokens(frozen.get(a)) else graph.frozen(a))
    residual, carriers = _residual(graph), carriers_of(graph)
    roles = {a: _role(a, frozen[a], nesting, residual) for a in sites}
    names = _names({a: (roles[a], where) for a, where in sites.items()})
    regions = Regions(graph, frozenset(a for a in sites if frozen[a] is None))
    if any(s.rule is not None and s.rule.taught and s.flow.linear for s in graph.steps.values()):
        _ = regions.by_atom  # a law that a user taught is read at once: a mistake in it is an error here
    groups = [Group(names[a], roles[a], a, tuple(where), frozen[a], regions) for a, where in sites.items()]
    links = {}
    for a in sites:
        head = nesting.head(a)
        own_choice = live(head) and live(a) and only_inside(a, head, carriers)
        outer, inner = (tuple(filter(live, _ordered(of[a]))) for of in (nesting.outer, nesting.inner))
        links[a] = _Links(head if own_choice else None, outer, inner)
    return _linked(groups, links)


def renamed(groups: Iterable[Group], names: Mapping[Group, str]) -> tuple[Group, ...]:
    """Return the same groups, some under other names."""
    groups = tuple(groups)
    links = {
        g.atom: _Links(
            g.inside.atom if g.inside else None,
            tuple(o.atom for o in g.outer),
            tuple(i.atom for i in g.inner),
        )
        for g in groups
    }
    return _linked(
        [Group(names.get(g, g.name), g.role, g.atom, g.sites, g.frozen, g.changes) for g in groups], links
    )


def _linked(groups: Iterable[Group], links: Mapping[Atom, _Links]) -> tuple[Group, ...]:
    """Link groups to one another: they refer in circles, so this last step writes to frozen ones."""
    by_atom = {group.atom: group for group in groups}
    for a, group in by_atom.items():
        link = links[a]
        object.__setattr__(group, "inside", by_atom[link.inside] if link.inside else None)
        object.__setattr__(group, "outer", tuple(by_atom[b] for b in link.outer))
        object.__setattr__(group, "inner", tuple(by_atom[b] for b in link.inner))
    return tuple(by_atom.values())


def _ordered(atoms: Iterable[Atom]) -> list[Atom]:
    return sorted(atoms, key=lambda a: a.serial)


def _sites(graph: TypedGraph) -> dict[Atom, list[Site]]:
    """Return each atom's places in the weights, under all the names that the model has for them."""
    sites: dict[Atom, list[Site]] = defaultdict(list)
    constants = {name: name for name in graph.weights if name not in graph.names}
    for name, used in {**graph.names, **constants}.items():
        for dim, axis in enumerate(graph.weights[used]):
            for a in dict.fromkeys(atoms_of(axis)):
                sites[a].append(Site(name, dim))
    return dict(sites)


def _reasons(graph: TypedGraph, sites: Iterable[Atom]) -> dict[Atom, Reason | None]:
    """Find why each atom is frozen: by the rules, or by what it is to the whole network."""
    born, channels, twice = _born(graph), is_channel(graph), _used_twice(graph)

    def reason(a: Atom) -> Reason | None:
        if (known := graph.frozen(a)) is not None:
            return known
        if a in born and a not in channels:
            return Reason("tokens: weights lie along it, none contracts it", kind="tokens")
        if a in twice:
            return Reason("it occurs twice in one product of axes")
        return None if a in born else Reason("only input data, no parameter, has this dimension")

    return {a: reason(a) for a in sites}


def _is_tokens(reason: Reason | None) -> bool:
    return reason is not None and reason.kind == "tokens"


def _born(graph: TypedGraph) -> set[Atom]:
    """Return atoms that some parameter brings into the graph: a node's result carries them on from it.

    The rest are only summed over (the coordinates that a position MLP reads): data, not channels.
    """
    parameters = {name for name, _ in graph.module.named_parameters(remove_duplicate=False)}
    born: set[Atom] = set()
    for node, sites in graph.operands.items():
        result = graph.carried(node)
        for site in sites:
            if site.name in parameters:
                born |= result.intersection(atoms_of(graph.at(site)))
    return born


def _used_twice(graph: TypedGraph) -> set[Atom]:
    """Return atoms that meet themselves in one product: their elements can't be chosen independently."""

    def factors(axis: Axis) -> list[Atom]:
        if isinstance(axis, Atom):
            return [axis]
        seen = [a for part in axis.parts for a in dict.fromkeys(factors(part))]
        if isinstance(axis, Product):
            repeated.update(a for a in seen if seen.count(a) > 1)
        return seen

    repeated: set[Atom] = set()
    everything = [
        *graph.weights.values(),
        *(axes for values in graph.axes.values() for axes in values),
    ]
    for axis in {axis for axes in everything for axis in axes}:
        factors(axis)
    return repeated


def _role(a: Atom, frozen: Reason | None, nesting: Nesting, residual: set[Atom]) -> str:
    if frozen is not None:
        return "output" if frozen.kind == "output" else "frozen"
    if nesting.inner[a]:
        return "heads"
    if nesting.outer[a]:
        return "head_dim"
    return "embed" if a in residual else "hidden"


def _residual(graph: TypedGraph) -> set[Atom]:
    """Return atoms along which two computed values are added: residual streams."""
    out: set[Atom] = set()
    for node, step in graph.steps.items():
        if step.call.op != "add":
            continue
        operands = [n for n in node.all_input_nodes if n.op not in ("get_attr", "placeholder")]
        if len(operands) == 2:
            out |= graph.carried(operands[0]) & graph.carried(operands[1])
    return out


def _names(groups: Mapping[Atom, tuple[str, Sequence[Site]]]) -> dict[Atom, str]:
    """Name groups by the module that holds all their sites, and their role: `blocks.3.attn.heads`.

    Numbered where that is not unique.
    """
    taken: dict[str, int] = defaultdict(int)
    names = {}
    for a, (role, sites) in groups.items():
        prefix = _common_module([site.name for site in sites])
        base = f"{prefix}.{role}" if prefix else role
        taken[base] += 1
        names[a] = base if taken[base] == 1 else f"{base}{taken[base]}"
    return names


def _common_module(names: list[str]) -> str:
    """Return the longest module path that all names share."""
    paths = [name.split(".")[:-1] for name in names]
    shared = itertools.takewhile(lambda column: len(set(column)) == 1, zip(*paths, strict=False))
    return ".".join(column[0] for column in shared)
