"""x.squeeze() names the dimensions that it removes: a width that shrinks to one must not go with them."""

from __future__ import annotations

import operator

from torch import Tensor, fx

from fxprune.graph.example import PRIME_BATCH
from fxprune.graph.op_names import op_name
from fxprune.graph.own_nodes import guard_branch

__all__ = ["explicit_squeeze"]


def explicit_squeeze(module: fx.GraphModule, *, batch: int | None = None) -> fx.GraphModule:
    """Name the dimensions that each squeeze removes.

    Needs: `meta["val"]` for a stand-in batch.  Guarantees: the same values.  Where a dimension that is longer
    here (the batch, a number of tokens) is one in a later call, `squeeze` would remove it too: a guard
    refuses such a call.  `batch`: the example's.

    Raises:
        NotImplementedError: the example's batch is one, and goes.
    """
    for node in list(module.graph.nodes):
        if node.op not in ("call_function", "call_method") or op_name(node.target) != "squeeze":
            continue
        x = node.args[0] if node.args else node.kwargs["input"]
        value = x.meta.get("val") if isinstance(x, fx.Node) else None
        if not isinstance(value, Tensor):
            continue
        given = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
        wanted = range(value.ndim) if given is None else [given] if isinstance(given, int) else given
        units = tuple(d for d in wanted if value.shape[d] == 1)
        for d in (d for d in wanted if value.shape[d] != 1):
            if batch == 1 and value.shape[d] % PRIME_BATCH == 0:
                raise NotImplementedError(
                    f"squeeze() at {node.meta.get('where')} removes the batch as well where it is one; "
                    f"give an example of two samples"
                )
            _guard_more_than_one(module.graph, node, x, d)
        if units and given == units:
            continue
        with module.graph.inserting_before(node):
            squeezed = module.graph.call_method("squeeze", (x, units)) if units else x
        if isinstance(squeezed, fx.Node) and units:
            squeezed.meta = dict(node.meta)
        node.replace_all_uses_with(squeezed)
        module.graph.erase_node(node)
    return module


def _guard_more_than_one(graph: fx.Graph, squeeze: fx.Node, x: fx.Node, dim: int) -> None:
    """Guard against a dimension of one, which would be squeezed as well."""
    with graph.inserting_before(squeeze):
        size = graph.call_method("size", (x, dim))
        size.meta["val"] = x.meta["val"].shape[dim]
        many = graph.call_function(operator.ne, (size, 1))
        many.meta["val"] = True
        where = squeeze.meta.get("where") or squeeze.name
        graph.call_function(guard_branch, (many, True), {"where": where}).meta["val"] = None
