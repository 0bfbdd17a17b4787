"""Groups of coupled dimensions: what `fxprune.analyze` returns, prints and explains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType

import networkx as nx
from torch import fx

from fxprune.analysis.branches import Removal
from fxprune.analysis.groups import Group, build_groups, renamed
from fxprune.analysis.infer import Step
from fxprune.analysis.outputs import Outputs
from fxprune.analysis.paths import chain_between, dependency_graph
from fxprune.analysis.typed_graph import Site, TypedGraph, type_graph
from fxprune.errors import MissingRuleError, OptionError
from fxprune.graph.captured import Captured
from fxprune.graph.tensors import named_tensors
from fxprune.rules.axes import Atom, Axis, Reason, atoms_of
from fxprune.rules.registry import Axes, RuleSet

__all__ = ["Analysis", "Group", "Site", "analysis_of"]


@dataclass(frozen=True, eq=False, repr=False)
class Analysis:
    """Every dimension of a model's weights, sorted into groups that shrink together.

    `str()` is a table; `to_networkx()` the dependency graph; `why(a, b)` the chain between two sites.

    graph: the graph that is analysed, with the axes of all its values and weights.
    groups: its groups, in the order in which the model uses them.
    original: what the model itself computes.
    removal: the branches that the graph lacks.
    regrouped: groups of heads -> how many they were merged to.
    """

    graph: TypedGraph
    groups: tuple[Group, ...]
    original: Captured
    removal: Removal | None = None
    regrouped: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def captured(self) -> Captured:
        return self.graph.captured

    @property
    def inference(self) -> TypedGraph:
        """The typed graph, under its earlier name."""
        return self.graph

    @property
    def module(self) -> fx.GraphModule:
        return self.graph.module

    @property
    def rules(self) -> RuleSet:
        return self.graph.rules

    @property
    def outputs(self) -> Outputs:
        return self.graph.outputs

    @property
    def names(self) -> Mapping[str, str]:
        """Every name that the model has for a tensor -> the name in the graph."""
        return self.graph.names

    @property
    def axes(self) -> Mapping[fx.Node, tuple[Axes, ...]]:
        """For each node, the axes of every tensor that it returns."""
        return self.graph.axes

    @property
    def weights(self) -> Mapping[str, Axes]:
        """The axes of each parameter and buffer, by its name in the graph."""
        return self.graph.weights

    @property
    def steps(self) -> Mapping[fx.Node, Step]:
        """Each call as its rule understood it."""
        return self.graph.steps

    @property
    def missing(self) -> Mapping[str, tuple[str, ...]]:
        """Ops that no rule covers -> the nodes that call them."""
        return self.graph.missing

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

    @property
    def prunable(self) -> list[Group]:
        """The groups that may shrink."""
        return [group for group in self.groups if group.frozen is None]

    @cached_property
    def by_atom(self) -> Mapping[Atom, Group]:
        return {group.atom: group for group in self.groups}

    def frozen(self, a: Atom) -> Reason | None:
        """Return why an atom is frozen, or None if it may shrink."""
        group = self.by_atom.get(a)
        return group.frozen if group is not None else self.graph.frozen(a)

    def on(
        self,
        module: fx.GraphModule,
        *,
        removal: Removal | None = None,
        regrouped: Mapping[str, int] | None = None,
    ) -> Analysis:
        """Return the analysis of a graph that a pass made of this one's; both share their tensors.

        `regrouped` stays as it is unless another is given; `removal` is of that graph alone, and does not.
        """
        tensors = dict(named_tensors(self.module))
        names = {name: tensors[used] for name, used in self.names.items()}
        graph = type_graph(self.captured.on(module), self.rules, names, outputs=self.outputs)
        return Analysis(graph, build_groups(graph), self.original, removal, regrouped or self.regrouped)

    def renamed(self, names: Mapping[Group, str]) -> Analysis:
        """Return the same analysis, with some groups under other names."""
        return replace(self, groups=renamed(self.groups, names))

    def refuse_missing_rules(self) -> None:
        """Raise one MissingRuleError that names every op without a rule."""
        if not self.missing:
            return
        lines = [f"{op} at {', '.join(nodes[:5])}" for op, nodes in sorted(self.missing.items())]
        raise MissingRuleError(
            "strict=True, and no rule covers:\n  " + "\n  ".join(lines) + "\nTeach them with "
            "rules=DEFAULT_RULES.extended({...}), or drop strict to freeze what they touch"
        )

    def group_of(self, site: str | Site) -> list[Group]:
        """Return the groups that one dimension is made of: `group_of("blocks.0.attn.qkv.weight[0]")`."""
        return [self.by_atom[a] for a in atoms_of(self.graph.at(self._site(site)))]

    def axis(self, site: Site) -> Axis:
        """Return what a dimension means: `Product(3, heads, head_dim)`."""
        return self.weights[self.names.get(site.name, site.name)][site.dim]

    def why(self, a: str | Site, b: str | Site) -> list[str]:
        """Explain why two dimensions are coupled: the chain of nodes between them; empty if they are not.

        >>> analysis.why("blocks.0.mlp.fc1.weight[0]", "blocks.0.mlp.fc2.weight[1]")
        ['blocks.0.mlp.fc1.weight[0]', 'blocks_0_mlp_fc1', ..., 'blocks.0.mlp.fc2.weight[1]']
        """
        first, second = self._site(a), self._site(b)
        shared = [g for g in self.group_of(first) if g in self.group_of(second)]
        return chain_between(self.graph, first, second, shared)

    def to_networkx(self) -> nx.Graph:
        """Return the dependency graph: sites, nodes and groups.

        An edge's `kind` is "member" between a group and its sites, and "carried" where the group's axis
        passes between a site and a node, or two nodes; its `group` names it.
        """
        return dependency_graph(self.graph, self.groups)

    def _site(self, site: str | Site) -> Site:
        said = site
        if isinstance(site, str):
            name, _, dim = site.rstrip("]").partition("[")
            site = Site(name, int(dim or 0)) if dim.isdecimal() or not dim else Site(site, 0)
        name = self.names.get(site.name, site.name)
        if name not in self.weights or not 0 <= site.dim < len(self.weights[name]):
            raise OptionError(f"{said} is no dimension of this model's weights; write 'name.of.weight[0]'")
        return Site(name, site.dim)

    def __str__(self) -> str:
        rows = [("group", "size", "role", "sites", "freedom", "")]
        for group in self.groups:
            counts = str(group.size), group.role, str(len(group.sites))
            rows.append((group.name, *counts, str(group.freedom), group.why))
        widths = [max(len(row[i]) for row in rows) for i in range(5)]
        lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, (*widths, 0), strict=True)) for row in rows]
        lines.append(self._summary)
        return "\n".join(line.rstrip() for line in lines)

    def _repr_html_(self) -> str:
        """Return the same table for a notebook, with the colours that pictures use."""
        from fxprune.analysis.table import groups_table

        return groups_table(self.groups, self._summary)

    @property
    def _summary(self) -> str:
        return f"{len(self.groups)} groups, {len(self.prunable)} can shrink ({self.capture} capture)"


def analysis_of(graph: TypedGraph) -> Analysis:
    """Return the groups of a typed graph that is a model's own: nothing was removed or merged in it."""
    return Analysis(graph, build_groups(graph), graph.captured)
