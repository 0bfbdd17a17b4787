"""`x.sum(1).unsqueeze(1) / n` divides a view of a sum: divide the sum, then take the view."""

from __future__ import annotations

from torch import fx

from fxprune.passes.counts import REDUCTIONS, operands, scaled

__all__ = ["divide_sums_first"]

_VIEWS = frozenset(
    {
        *("unsqueeze", "squeeze", "view", "reshape", "flatten", "unflatten", "transpose", "permute"),
        *("expand", "getitem"),
    }
)


def divide_sums_first(module: fx.GraphModule) -> fx.GraphModule:
    """Divide sums and means, or multiply them, by numbers before views are taken of them.

    Needs: `meta["val"]`.  Guarantees: the same values.
    """
    for node in list(module.graph.nodes):
        total, _ = scaled(node, REDUCTIONS, views=_VIEWS) or (None, None)
        views = _views_of(total, operands(node)[0]) if total is not None else []
        if total is None or not views:
            continue
        below: fx.Node = total
        with module.graph.inserting_before(node):
            for of in [node, *reversed(views)]:
                below = _on(of, views[0] if of is node else of.all_input_nodes[0], below)
                below.meta["val"] = total.meta["val"] if of is node else of.meta["val"]
        node.replace_all_uses_with(below)
        module.graph.erase_node(node)
    module.graph.eliminate_dead_code()
    return module


def _views_of(total: fx.Node, seen: fx.Node) -> list[fx.Node]:
    """List the views of a sum, from the last to the first."""
    views = []
    while seen is not total:
        views.append(seen)
        seen = seen.all_input_nodes[0]
    return views


def _on(node: fx.Node, old: fx.Node, new: fx.Node) -> fx.Node:
    """Copy a node, with another in the place of one of its arguments."""
    return node.graph.node_copy(node, lambda n: new if n is old else n)
