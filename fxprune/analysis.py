"""Groups of coupled dimensions: what `fxprune.analyze` returns, prints and explains."""

from __future__ import annotations

import itertools
import os
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache, cached_property, lru_cache
from typing import Any

import networkx as nx
from torch import fx

from fxprune.axes import Atom, Axis, Product, Reason, Sum, atoms_of
from fxprune.errors import MissingRuleError, OptionError
from fxprune.infer import Inference
from fxprune.rules.registry import Axes

__all__ = ["Analysis", "Group", "Site"]


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


class Analysis:
    """Every dimension of a model's weights, sorted into groups that shrink together.

    `str()` is a table; `to_networkx()` the dependency graph; `why(a, b)` the chain between two sites.
    """

    def __init__(self, module: fx.GraphModule, inference: Inference, names: dict[str, str]) -> None:
        self.module = module
        self.inference = inference
        self.names = names  # every name that the model has for a tensor -> the name in the graph
        solver = inference.solver
        self.weights: dict[str, Axes] = {
            name: tuple(map(solver.resolve, axes)) for name, axes in inference.weights.items()
        }
        self.axes: dict[fx.Node, list[Axes]] = {n: inference.axes_of(n) for n in inference.values}
        self.groups: list[Group] = _groups(self)
        self.by_atom: dict[Atom, Group] = {group.atom: group for group in self.groups}

    @property
    def capture(self) -> str:
        """ "symbolic" or "export"."""
        return self.module.meta["capture"]

    @property
    def notes(self) -> list[str]:
        """What the capture could not keep, in words."""
        return self.module.meta["notes"]

    @property
    def prunable(self) -> list[Group]:
        """The groups that may shrink."""
        return [group for group in self.groups if group.frozen is None]

    def refuse_missing_rules(self) -> None:
        """Raise one MissingRuleError that names every op without a rule."""
        if not self.inference.missing:
            return
        lines = [f"{op} at {', '.join(nodes[:5])}" for op, nodes in sorted(self.inference.missing.items())]
        raise MissingRuleError(
            "strict=True, and no rule covers:\n  " + "\n  ".join(lines) + "\nTeach them with "
            "rules=DEFAULT_RULES.extended({...}), or drop strict to keep what they touch whole"
        )

    def group_of(self, site: str | Site) -> list[Group]:
        """The groups that one dimension is made of: `group_of("blocks.0.attn.qkv.weight[0]")`."""
        site = self._site(site)
        return [self.by_atom[a] for a in atoms_of(self.weights[site.name][site.dim])]

    def axis(self, site: Site) -> Axis:
        """What a dimension means: `Product(3, heads, head_dim)`."""
        return self.weights[self.names.get(site.name, site.name)][site.dim]

    def why(self, a: str | Site, b: str | Site) -> list[str]:
        """Why are two dimensions coupled?  The chain of nodes between them; empty if they are not.

        >>> analysis.why("blocks.0.mlp.fc1.weight[0]", "blocks.0.mlp.fc2.weight[1]")
        ['blocks.0.mlp.fc1.weight[0]', 'blocks_0_mlp_fc1', ..., 'blocks.0.mlp.fc2.weight[1]']
        """
        first, second = self._site(a), self._site(b)
        shared = [g for g in self.group_of(first) if g in self.group_of(second)]
        for group in shared:
            flow = self._flow_of(group.atom)
            try:
                return [_label(n) for n in nx.shortest_path(flow, str(first), str(second))]
            except (nx.NetworkXNoPath, nx.NodeNotFound):
                continue
        return []

    def to_networkx(self) -> nx.Graph:
        """The dependency graph: sites, nodes and groups; edges are labelled with the group's name."""
        graph = nx.Graph()
        for group in self.groups:
            graph.add_node(group.name, kind="group", size=group.size, frozen=str(group.frozen or ""))
            for site in group.sites:
                graph.add_node(str(site), kind="site")
                graph.add_edge(group.name, str(site), kind="member")
            for u, v in self._flow_of(group.atom).edges:
                for end in (u, v):
                    graph.add_node(_label(end), kind="node" if isinstance(end, fx.Node) else "site")
                graph.add_edge(_label(u), _label(v), kind="flow", group=group.name)
        return graph

    def _site(self, site: str | Site) -> Site:
        if isinstance(site, str):
            name, _, dim = site.rstrip("]").partition("[")
            site = Site(name, int(dim or 0))
        name = self.names.get(site.name, site.name)
        if name not in self.weights or not 0 <= site.dim < len(self.weights[name]):
            raise OptionError(f"{site} is no dimension of this model's weights; write 'name.of.weight[0]'")
        return Site(name, site.dim)

    def _flow_of(self, wanted: Atom) -> nx.Graph:
        """Weights' dimensions and nodes through which an atom passes, joined where an op joins them."""
        graph = nx.Graph()
        for node, sites in self._operands.items():
            touching: list[Any] = [
                str(site) for site in sites if wanted in self._atoms(self.weights[site.name][site.dim])
            ]
            touching += [
                arg for arg in node.all_input_nodes if arg.op != "get_attr" and self._carries(arg, wanted)
            ]
            if self._carries(node, wanted) or len(touching) > 1:
                graph.add_edges_from((node, other) for other in touching)
        return graph

    def _carries(self, node: fx.Node, wanted: Atom) -> bool:
        return any(wanted in self._atoms(axis) for axes in self.axes[node] for axis in axes)

    @staticmethod
    @cache
    def _atoms(axis: Axis) -> frozenset[Atom]:
        return frozenset(atoms_of(axis))

    @cached_property
    def _operands(self) -> dict[fx.Node, list[Site]]:
        """For each call, the weights that it reads itself (through get_attr or as a module)."""
        out: dict[fx.Node, list[Site]] = {}
        for node in self.axes:
            if node.op in ("placeholder", "get_attr", "output"):
                continue
            names = [str(n.target) for n in node.all_input_nodes if n.op == "get_attr"]
            if node.op == "call_module":
                path = f"{node.target}."
                names += [n for n in self.weights if n.startswith(path)]
            out[node] = [Site(n, d) for n in names if n in self.weights for d in range(len(self.weights[n]))]
        return out

    def __str__(self) -> str:
        rows = [("group", "size", "role", "sites", "")]
        for group in self.groups:
            frozen = f"whole: {_short(group.frozen)}" if group.frozen else ""
            rows.append((group.name, str(group.size), group.role, str(len(group.sites)), frozen))
        widths = [max(len(row[i]) for row in rows) for i in range(4)]
        lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, (*widths, 0), strict=True)) for row in rows]
        shrink = len(self.prunable)
        lines.append(f"{len(self.groups)} groups, {shrink} can shrink ({self.capture} capture)")
        return "\n".join(line.rstrip() for line in lines)


def _short(reason: Reason | None) -> str:
    if reason is None:
        return ""
    where = reason.where and f"{os.path.basename(reason.where)}"
    return str(Reason(reason.text, reason.node, where))


def _label(node: Any) -> str:
    return node.name if isinstance(node, fx.Node) else str(node)


# ---------------------------------------------------------------- building the groups


def _groups(analysis: Analysis) -> list[Group]:
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
        group.outer = [g for b, g in groups.items() if b in inside.outer[a] and g.frozen is None]
        group.inner = [g for b, g in groups.items() if b in inside.inner[a] and g.frozen is None]
    for a, group in groups.items():
        group.role = _role(a, group, inside, analysis)
        head = inside.head(a)
        if head in groups and groups[head].frozen is None and group.frozen is None:
            group.inside = groups[head] if _only_inside(a, head, analysis) else None
    _name(list(groups.values()))
    return list(groups.values())


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
    return nesting


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


def _only_inside(a: Atom, head: Atom | None, analysis: Analysis) -> bool:
    """Does every value that carries the atom carry the head outside it?

    Only then may each head keep indices of its own: a norm's weight or a rotary table that carries the
    head dim alone, a mixing of heads, or a (head_dim heads) layout ties all heads to the same choice.
    """

    def order(axes: Axes) -> list[Atom]:
        return [b for axis in axes for b in atoms_of(axis)]

    for axes in analysis.weights.values():
        for axis in axes:
            if a in analysis._atoms(axis) and not _outside(head, a, axis):
                return False
    for values in analysis.axes.values():
        for axes in values:
            present = order(axes)
            if a in present and head not in present:
                return False
            if any(
                a in analysis._atoms(x) and head in analysis._atoms(x) and not _outside(head, a, x)
                for x in axes
            ):
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


def _role(a: Atom, group: Group, nesting: _Nesting, analysis: Analysis) -> str:
    if group.frozen is not None and group.frozen.text == "reaches the output":
        return "output"
    if group.frozen is not None:
        return "whole"
    inner = {b for b in nesting.inner[a]}
    if inner:
        return "heads"
    if nesting.outer[a]:
        return "head_dim"
    return "embed" if a in _residual(analysis) else "hidden"


@lru_cache(maxsize=8)
def _residual(analysis: Analysis) -> frozenset[Atom]:
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
    return frozenset(out)


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
