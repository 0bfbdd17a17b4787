"""Groups of coupled dimensions: what `fxprune.analyze` returns, prints and explains."""

from __future__ import annotations

import itertools
from collections import defaultdict
from functools import cached_property, lru_cache
from typing import Any

import networkx as nx
from torch import Tensor, fx

from fxprune.analysis.branches import Removal
from fxprune.analysis.groups import Group, Site, build_groups
from fxprune.analysis.infer import Inference, infer
from fxprune.axes import Atom, Axis, atoms_of
from fxprune.errors import MissingRuleError, OptionError
from fxprune.graph.facts import Captured
from fxprune.graph.tensors import named_tensors
from fxprune.rules.registry import Axes

__all__ = ["Analysis", "Group", "Site"]


class Analysis:
    """Every dimension of a model's weights, sorted into groups that shrink together.

    `str()` is a table; `to_networkx()` the dependency graph; `why(a, b)` the chain between two sites.
    """

    def __init__(
        self,
        captured: Captured,
        inference: Inference,
        names: dict[str, str],
        original: Captured | None = None,
        removal: Removal | None = None,
        regrouped: dict[str, int] | None = None,
    ) -> None:
        self.captured = captured  # the graph that is analysed
        self.module = captured.module
        self.original = original or captured  # what the model itself computes
        self.removal = removal  # the branches that the graph lacks
        self.regrouped = regrouped or {}  # groups of heads -> how many they were merged to
        self.inference = inference
        self.names = names  # every name that the model has for a tensor -> the name in the graph
        solver = inference.solver
        self.weights: dict[str, Axes] = {
            name: tuple(map(solver.resolve, axes)) for name, axes in inference.weights.items()
        }
        self.axes: dict[fx.Node, list[Axes]] = {n: inference.axes_of(n) for n in inference.values}
        self.groups: list[Group] = build_groups(self)
        self.by_atom: dict[Atom, Group] = {group.atom: group for group in self.groups}

    @property
    def capture(self) -> str:
        """ "symbolic" or "export"."""
        return self.captured.way

    @property
    def notes(self) -> list[str]:
        """What the capture could not keep, in words."""
        return list(self.captured.notes)

    @property
    def removed(self) -> tuple[str, ...]:
        """The names of the residual branches that were left out."""
        return tuple(branch.name for branch in self.removal.branches) if self.removal else ()

    def on(
        self,
        module: fx.GraphModule,
        *,
        removal: Removal | None = None,
        regrouped: dict[str, int] | None = None,
    ) -> Analysis:
        """The analysis of a graph that a pass made of this one's; both share their tensors."""
        captured = self.captured.on(module)
        inference = infer(captured, self.inference.rules, prune_outputs=self.inference.prune_outputs)
        tensors = dict(named_tensors(self.module))
        names = {name: tensors[used] for name, used in self.names.items()}
        used = names_in_graph(names, module, inference)
        return Analysis(captured, inference, used, self.original, removal, regrouped or self.regrouped)

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
    @lru_cache(maxsize=1 << 16)
    def _atoms(axis: Axis) -> frozenset[Atom]:
        return frozenset(atoms_of(axis))

    @cached_property
    def _operands(self) -> dict[fx.Node, list[Site]]:
        """For each call, the weights that it reads itself (through get_attr or as a module)."""
        out: dict[fx.Node, list[Site]] = {}
        within: dict[str, list[str]] = defaultdict(list)  # module -> weights in it
        for name in self.weights:
            for path in itertools.accumulate(name.split(".")[:-1], "{}.{}".format):
                within[path].append(name)
        for node in self.axes:
            if node.op in ("placeholder", "get_attr", "output") or not self.axes[node]:
                continue  # (what gives no tensor reads a weight's dtype, device or shape)
            names = [str(n.target) for n in node.all_input_nodes if n.op == "get_attr"]
            if node.op == "call_module":
                names += within[str(node.target)]
            out[node] = [Site(n, d) for n in names if n in self.weights for d in range(len(self.weights[n]))]
        return out

    def __str__(self) -> str:
        rows = [("group", "size", "role", "sites", "")]
        for group in self.groups:
            frozen = f"whole: {group.frozen.brief}" if group.frozen else ""
            rows.append((group.name, str(group.size), group.role, str(len(group.sites)), frozen))
        widths = [max(len(row[i]) for row in rows) for i in range(4)]
        lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, (*widths, 0), strict=True)) for row in rows]
        lines.append(self._summary)
        return "\n".join(line.rstrip() for line in lines)

    def _repr_html_(self) -> str:
        """The same table for a notebook, with the colours that pictures use."""
        from fxprune.analysis.table import groups_table

        return groups_table(self.groups, self._summary)

    @property
    def _summary(self) -> str:
        return f"{len(self.groups)} groups, {len(self.prunable)} can shrink ({self.capture} capture)"


def names_in_graph(
    tensors: dict[str, Tensor], captured: fx.GraphModule, inference: Inference
) -> dict[str, str]:
    """Every name that a model has for a tensor -> the name under which the graph uses it."""
    used: dict[int, str] = {}
    for name, tensor in named_tensors(captured):
        if name in inference.weights:
            used.setdefault(id(tensor), name)
    return {name: used[id(tensor)] for name, tensor in tensors.items() if id(tensor) in used}


def _label(node: Any) -> str:
    return node.name if isinstance(node, fx.Node) else str(node)
