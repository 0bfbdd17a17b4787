"""x.view(2, 3) -> x.view((2, 3)): sizes given one by one become one argument, as rules expect them."""

from __future__ import annotations

from torch import fx

__all__ = ["pack_varargs"]

_AFTER_SELF = {
    "view",
    "reshape",
    "permute",
    "expand",
    "repeat",
    "tile",
    "flip",
    "new_zeros",
    "new_ones",
    "new_empty",
}
_FROM_FIRST = {"zeros", "ones", "empty", "rand", "randn"}


def pack_varargs(module: fx.GraphModule) -> fx.GraphModule:
    """Make one argument of sizes that are given one by one.

    Needs: `meta["val"]`, since a size may be a node.  Guarantees: the same nodes and calls.
    """
    for node in module.graph.nodes:
        if node.op == "call_method" and node.target in _AFTER_SELF:
            _pack(node, 1)
        elif node.op == "call_function" and getattr(node.target, "__name__", "") in _FROM_FIRST:
            _pack(node, 0)
    return module


def _pack(node: fx.Node, first: int) -> None:
    rest = node.args[first:]
    if rest and all(isinstance(a.meta["val"] if isinstance(a, fx.Node) else a, int) for a in rest):
        node.args = (*node.args[:first], list(rest))
