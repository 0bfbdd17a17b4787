"""What a model computes under `torch.no_grad()` passes no gradient on: in a graph, a `detach` says so."""

from __future__ import annotations

from functools import partial

from torch import Tensor, fx

__all__ = ["stop_gradients"]


def stop_gradients(module: fx.GraphModule) -> fx.GraphModule:
    """Detach each tensor that leaves a region without gradients (`meta["no_grad"]`).

    Needs: `meta["val"]`.  Guarantees: the same values.
    """
    for node in list(module.graph.nodes):
        if not node.meta.get("no_grad") or node.op == "get_attr":
            continue
        outside = [user for user in node.users if not user.meta.get("no_grad")]
        if not isinstance(node.meta["val"], Tensor):
            for user in outside:  # a part of a list, taken out later
                user.meta["no_grad"] = True
        elif outside:
            with module.graph.inserting_after(node):
                stopped = module.graph.call_method("detach", (node,))
            stopped.meta = dict(node.meta)
            node.replace_all_uses_with(stopped, delete_user_cb=partial(_is_one_of, outside))
    return module


def _is_one_of(users: list[fx.Node], user: fx.Node) -> bool:
    return user in users
