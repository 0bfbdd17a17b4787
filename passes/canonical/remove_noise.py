"""Drop what computes nothing: shape asserts, identity modules, dead code."""

from __future__ import annotations

import torch
from torch import fx, nn

__all__ = ["remove_noise"]

_ASSERTS = {
    *("_assert", "_assert_async", "_assert_scalar", "_assert_tensor_metadata", "_functional_assert_async"),
    *("sym_constrain_range", "sym_constrain_range_for_size", "_check", "_check_is_size"),
}


def remove_noise(module: fx.GraphModule) -> fx.GraphModule:
    """Erase asserts, identities and dead code.

    Needs: nothing.  Guarantees: the same values by fewer nodes.
    """
    for node in list(module.graph.nodes):
        if _is_assert(node):
            module.graph.erase_node(node)
        elif _is_identity(node, module):
            node.replace_all_uses_with(node.args[0])
            module.graph.erase_node(node)
    module.graph.eliminate_dead_code()
    return module


def _is_assert(node: fx.Node) -> bool:
    if node.op != "call_function" or node.users:
        return False
    name = getattr(node.target, "__name__", "").split(".")[0]
    return name in _ASSERTS or node.target is torch._assert


def _is_identity(node: fx.Node, module: fx.GraphModule) -> bool:
    if node.op != "call_module" or not node.args:
        return False
    return type(module.get_submodule(str(node.target))) is nn.Identity
