"""Where an autograd function is called, what its forward does need not stand in the graph as well."""

from __future__ import annotations

from torch import fx, nn

from fxprune.graph.own_nodes import AutogradFunction

__all__ = ["hide_forwards"]


def hide_forwards(graph: fx.Graph, root: nn.Module) -> None:
    """Drop the forward that stands beside a user's own autograd function, for analysis only.

    Needs: a graph of its own that nobody analyses any more.  Guarantees: the same values by fewer nodes.
    """
    for node in list(graph.nodes):
        if node.op == "call_module" and isinstance(root.get_submodule(str(node.target)), AutogradFunction):
            like, node.kwargs = node.kwargs["like"], {}
            _erase_unused(like)


def _erase_unused(node: fx.Node) -> None:
    if not node.users and node.op in ("call_function", "call_method"):
        inputs = node.all_input_nodes
        node.graph.erase_node(node)
        for before in inputs:
            _erase_unused(before)
