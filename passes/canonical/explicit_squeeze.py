"""x.squeeze() names the dimensions that it removes: a width that shrinks to one must not go with them."""

from __future__ import annotations

from torch import Tensor, fx

from fxprune.graph.op_names import op_name

__all__ = ["explicit_squeeze"]


def explicit_squeeze(module: fx.GraphModule) -> None:
    """Contract: the same values.  Needs `meta["val"]`."""
    for node in list(module.graph.nodes):
        if node.op not in ("call_function", "call_method") or op_name(node.target) != "squeeze":
            continue
        x = node.args[0]
        value = x.meta.get("val") if isinstance(x, fx.Node) else None
        if not isinstance(value, Tensor):
            continue
        given = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
        wanted = range(value.ndim) if given is None else [given] if isinstance(given, int) else given
        units = tuple(d for d in wanted if value.shape[d] == 1)
        if units and given == units:
            continue
        with module.graph.inserting_before(node):
            squeezed = module.graph.call_method("squeeze", (x, units)) if units else x
        if isinstance(squeezed, fx.Node) and units:
            squeezed.meta = dict(node.meta)
        node.replace_all_uses_with(squeezed)
        module.graph.erase_node(node)
