"""Leave residual branches out: `x + f(x)` becomes `x`.

UP-ViTs removes blocks so (https://arxiv.org/abs/2111.15127).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import fx

from fxprune.analysis.branches import Branch
from fxprune.graph.writes import writes_in_place
from fxprune.passes.counts import renamed

__all__ = ["remove_branches"]


def remove_branches(module: fx.GraphModule, *, branches: Sequence[Branch]) -> fx.GraphModule:
    """Leave residual branches out of a graph.

    Needs: branches of `find_branches` on this very graph.  Guarantees: a new graph that computes what the old
    one does with every `branch.result` zero, on the old one's tensors, with its names and `meta` of nodes.
    """
    sources = {branch.add: branch.source for branch in branches}
    gone = {node for branch in branches for node in branch.nodes}
    graph = fx.Graph()
    new_of: dict[fx.Node, fx.Node] = {}
    for node in module.graph.nodes:
        if node in sources:
            new_of[node] = source = new_of[sources[node]]
            if any(writes_in_place(user, module) for user in node.users):
                # What writes into the sum must not write into the stream before it.
                new_of[node] = graph.create_node("call_function", torch.clone, (source,), name=node.name)
                new_of[node].meta = dict(node.meta)
        elif node not in gone:
            new_of[node] = graph.node_copy(node, lambda n: new_of[n])
    named = {node.name: new.name for node, new in new_of.items()}
    renamed(graph, named)  # a count of a sum that is gone is of what stood before it
    return fx.GraphModule(module, graph, type(module).__name__)
