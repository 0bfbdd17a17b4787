"""Where an autograd function is called, what its forward does need not stand in the graph as well."""

from __future__ import annotations

from torch import fx

from fxprune.graph.own_nodes import AutogradFunction
from fxprune.passes.shrinking.steps.draft import Draft

__all__ = ["hide_forwards"]


def hide_forwards(draft: Draft) -> None:
    """Drop the forward that stands beside a user's own autograd function, for analysis only.

    Needs: nobody analyses the graph any more.  Guarantees: the same values by fewer nodes.
    """
    for node in list(draft.graph.nodes):
        if node.op == "call_module" and isinstance(
            draft.root.get_submodule(str(node.target)), AutogradFunction
        ):
            like, node.kwargs = node.kwargs["like"], {}
            _erase_unused(like)


def _erase_unused(node: fx.Node) -> None:
    if not node.users and node.op in ("call_function", "call_method"):
        inputs = node.all_input_nodes
        node.graph.erase_node(node)
        for before in inputs:
            _erase_unused(before)
