"""`x.sum(1).unsqueeze(1) / n` divides a view of a sum: divide the sum, then take the view."""

from __future__ import annotations

from torch import fx

from fxprune.passes.canonical.counts import REDUCTIONS, operands, scaled

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
        seen = operands(node)[0] if total is not None else None
        if total is None or seen is total:
            continue
        views = [seen]
        while views[-1].args[0] is not total:
            views.append(views[-1].args[0])
        with module.graph.inserting_before(node):
            value = module.graph.node_copy(node, lambda n, of={seen: total}: of.get(n, n))
            value.meta["val"] = total.meta["val"]
            for view in reversed(views):
                value = module.graph.node_copy(
                    view, lambda n, above=view.args[0], value=value: value if n is above else n
                )
        node.replace_all_uses_with(value)
        module.graph.erase_node(node)
    module.graph.eliminate_dead_code()
    return module
