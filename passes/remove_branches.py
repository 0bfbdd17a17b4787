"""Leave residual branches out: `x + f(x)` becomes `x`.

UP-ViTs removes blocks so (https://arxiv.org/abs/2111.15127).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import fx

from fxprune.branches import Branch
from fxprune.capture.writes import writes_in_place

__all__ = ["Removal", "remove_branches"]


@dataclass(frozen=True)
class Removal:
    """What was left out of a graph, for those who need to know what it computes.

    whole: the graph with the branches; it is not changed.
    module: the graph without them.
    twins: node of `whole` -> the node of `module` that has its value where the branches are zero.
    branches: what was removed, as nodes of `whole`.
    """

    whole: fx.GraphModule
    module: fx.GraphModule
    twins: dict[fx.Node, fx.Node]
    branches: tuple[Branch, ...]


def remove_branches(module: fx.GraphModule, branches: Sequence[Branch]) -> Removal:
    """Contract: a new graph that computes what the old one does with every `branch.result` zero.

    It shares the old one's tensors, and keeps the names and `meta` of its nodes.  Needs branches of
    `find_branches` on this very graph.
    """
    sources = {branch.add: branch.source for branch in branches}
    gone = {node for branch in branches for node in branch.nodes}
    graph = fx.Graph()
    twins: dict[fx.Node, fx.Node] = {}
    for node in module.graph.nodes:
        if node in sources:
            twins[node] = source = twins[sources[node]]
            if any(writes_in_place(user, module) for user in node.users):
                # What writes into the sum must not write into the stream before it.
                twins[node] = graph.call_function(torch.clone, (source,))
                twins[node].meta = dict(node.meta)
        elif node not in gone:
            twins[node] = graph.node_copy(node, lambda n: twins[n])
    shorter = fx.GraphModule(module, graph, type(module).__name__)
    shorter.meta = dict(module.meta)
    return Removal(module, shorter, twins, tuple(branches))
