"""Follow an atom through a typed graph: why two dimensions are coupled, and the dependency graph."""

from __future__ import annotations

from collections.abc import Iterable

import networkx as nx
from torch import fx

from fxprune.analysis.groups import Group
from fxprune.analysis.typed_graph import Site, TypedGraph
from fxprune.rules.axes import Atom, atoms_of

__all__ = ["chain_between", "dependency_graph", "paths_of"]


def paths_of(graph: TypedGraph, wanted: Atom) -> nx.Graph:
    """Build the graph of weights' dimensions (as text) and nodes that an atom passes through."""
    paths = nx.Graph()
    for node, sites in graph.operands.items():
        touching: list[str | fx.Node] = [str(site) for site in sites if wanted in atoms_of(graph.at(site))]
        touching += [
            arg for arg in node.all_input_nodes if arg.op != "get_attr" and wanted in graph.carried(arg)
        ]
        if wanted in graph.carried(node) or len(touching) > 1:
            paths.add_edges_from((node, other) for other in touching)
    return paths


def chain_between(graph: TypedGraph, first: Site, second: Site, shared: Iterable[Group]) -> list[str]:
    """Return the shortest chain from site to site along which one of the shared groups passes; or none."""
    for group in shared:
        try:
            path = nx.shortest_path(paths_of(graph, group.atom), str(first), str(second))
        except (nx.NetworkXNoPath, nx.NodeNotFound):
            continue
        return [_label(end) for end in path]
    return []


def dependency_graph(graph: TypedGraph, groups: Iterable[Group]) -> nx.Graph:
    """Build a graph of sites, nodes and groups.

    Edges are of kind "member" (a group's sites), or "carried": an axis of the group passes along, whose name
    is the edge's `group`.
    """
    out = nx.Graph()
    for group in groups:
        out.add_node(
            group.name,
            kind="group",
            size=group.size,
            frozen=str(group.frozen or ""),
            freedom=str(group.freedom),
        )
        for site in group.sites:
            out.add_node(str(site), kind="site")
            out.add_edge(group.name, str(site), kind="member")
        for u, v in paths_of(graph, group.atom).edges:
            for end in (u, v):
                out.add_node(_label(end), kind="node" if isinstance(end, fx.Node) else "site")
            out.add_edge(_label(u), _label(v), kind="carried", group=group.name)
    return out


def _label(end: str | fx.Node) -> str:
    return end.name if isinstance(end, fx.Node) else end
