"""Attention without a scale gets the original's: 1/sqrt(head_dim), which must not follow a shrunk head."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import fx

__all__ = ["explicit_scale"]

_ATTENTION = (F.scaled_dot_product_attention, torch.ops.aten.scaled_dot_product_attention.default)


def explicit_scale(module: fx.GraphModule) -> fx.GraphModule:
    """Write the scale of each attention that leaves it open.

    Needs: `meta["val"]`.  Guarantees: the same values and nodes; those that it wrote have
    `meta["default_scale"]`.
    """
    for node in module.graph.nodes:
        if node.op != "call_function" or node.target not in _ATTENTION:
            continue
        scale = node.kwargs.get("scale")
        if scale is None:
            query = node.args[0] if node.args else node.kwargs["query"]
            node.update_kwarg("scale", query.meta["val"].shape[-1] ** -0.5)
            node.meta["default_scale"] = True
    return module
