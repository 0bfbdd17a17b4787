"""A part of a tensor that is taken for its shape alone is not taken: `x[:, :, -1].shape` asks x for it.

Which channel it was would otherwise have to stay where it is.
"""

from __future__ import annotations

import operator
from typing import TypeGuard

from torch import Tensor, fx

__all__ = ["sizes_of_whole"]

ENDS = (0, -1)  # places that every dimension has, however small


def sizes_of_whole(module: fx.GraphModule) -> fx.GraphModule:
    """Read shapes of a tensor's first or last elements off the tensor itself.

    Needs: `meta["val"]`.  Guarantees: the same values.
    """
    graph = module.graph
    for node in list(graph.nodes):
        kept = _kept(node)
        if not kept or not node.users or not all(map(_reads_shape, node.users)):
            continue
        x = node.args[0]
        for user in list(node.users):
            with graph.inserting_before(user):
                new = _asked(graph, user, x, kept)
            user.replace_all_uses_with(new)
            graph.erase_node(user)
        graph.erase_node(node)
    return module


def _kept(node: fx.Node) -> int:
    """Count the leading dimensions that an index leaves whole, where it takes an end of each one after."""
    x = node.args[0] if node.target is operator.getitem else None
    value = x.meta.get("val") if isinstance(x, fx.Node) else None
    index = node.args[1] if isinstance(value, Tensor) else None
    if not isinstance(value, Tensor) or not isinstance(index, tuple) or len(index) != value.ndim:
        return 0
    kept = sum(isinstance(entry, slice) for entry in index)
    whole = all(isinstance(entry, slice) and entry == slice(None) for entry in index[:kept])
    ends = all(type(entry) is int and entry in ENDS for entry in index[kept:])
    return kept if whole and ends else 0


def _reads_shape(user: fx.Node) -> bool:
    return _is_shape(user) or (user.op == "call_method" and user.target == "size" and _has_dim(user))


def _is_shape(user: fx.Node) -> bool:
    asks = user.target is getattr and str(user.args[1]) == "shape"
    return asks or (user.op == "call_method" and user.target == "size" and len(user.args) == 1)


def _has_dim(user: fx.Node) -> TypeGuard[fx.Node]:
    return len(user.args) == 2 and type(user.args[1]) is int and not user.kwargs


def _asked(graph: fx.Graph, user: fx.Node, x: fx.Node, kept: int) -> fx.Node:
    """Ask the whole tensor for what its part was asked."""
    if not _is_shape(user):
        dim = user.args[1]
        assert isinstance(dim, int)
        new = graph.call_method("size", (x, dim % kept))
        new.meta = dict(user.meta)
        return new
    shape = graph.call_function(getattr, (x, "shape"))
    shape.meta = {**user.meta, "val": x.meta["val"].shape}
    new = graph.call_function(operator.getitem, (shape, slice(None, kept)))
    new.meta = dict(user.meta)
    return new
