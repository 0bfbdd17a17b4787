"""The graph that a pass is making, with what its steps ask of the analysed one."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from torch import fx, nn

from fxprune.analysis.analysis import Analysis
from fxprune.result.selection import Selection

__all__ = ["Draft", "copied"]


KEPT = ("where", "module", "literal_dtype", "sum_over", "counted")  # of what is known of nodes


@dataclass(frozen=True)
class Draft:
    """A graph under construction: steps edit `graph` and the layers of `root` in place.

    new_of: node of the analysed graph, in order -> its copy in `graph`.
    root: the modules and tensors that `graph` refers to, of the sizes that it will have.
    """

    analysis: Analysis
    selection: Selection
    graph: fx.Graph
    new_of: dict[fx.Node, fx.Node]
    root: nn.Module


def copied(graph: fx.Graph, kept: Collection[str] = KEPT) -> tuple[fx.Graph, dict[fx.Node, fx.Node]]:
    """Copy a graph without the values of its nodes; returns it and the map of old nodes to new."""
    new = fx.Graph()
    new_of: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        copied = new.node_copy(node, lambda n: new_of[n])
        copied.meta = {k: v for k, v in node.meta.items() if k in kept}
        new_of[node] = copied
    return new, new_of
