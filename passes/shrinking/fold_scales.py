"""Write another constant into a product, and fold the ratio into the weights that bring the factor.

`(x @ w) * 0.125` is `(x @ (0.5 * w)) * 0.25`: so an attention gets the scale that its new head dim has
in the stock model, and its query projection takes up the difference.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, fx

from fxprune.errors import RewriteError
from fxprune.graph.example import Example
from fxprune.graph.nests import Value
from fxprune.graph.values import propagate_values
from fxprune.graph.writes import VIEWS
from fxprune.result.pruned_module import PrunedModule
from fxprune.rules.calls import Call, call_of, weight_name
from fxprune.rules.registry import DEFAULT_RULES

__all__ = ["can_fold", "constant_of", "fold_scales"]

_ATTENTION = "scaled_dot_product_attention"
_PRODUCTS = ("mul", "multiply")
_QUOTIENTS = ("div", "truediv", "divide", "true_divide")
_MATMULS = ("matmul", "bmm", "baddbmm")
_LAYOUT = VIEWS | {"contiguous", "clone"}
_BRINGS = {"linear": -1, "layer_norm": -1, "rms_norm": -1, "conv1d": 1, "conv2d": 1, "batch_norm": 1}


def constant_of(call: Call) -> float | None:
    """Return the constant that an attention or product multiplies (or divides) by; None if there is none."""
    if call.op.removeprefix("aten.") == _ATTENTION:
        scale = call.kwargs.get("scale")
    elif call.op in (*_PRODUCTS, *_QUOTIENTS) and len(call.args) == 2 and isinstance(call.args[0], fx.Node):
        scale = call.args[1]
    else:
        return None
    return float(scale) if isinstance(scale, (int, float)) and not isinstance(scale, bool) else None


def fold_scales(pruned: PrunedModule, *, scales: Mapping[str, float], example: Example) -> PrunedModule:
    """Write other constants into products, and fold the difference into the weights before them.

    `scales` are the new constants by the names of their nodes.

    Needs: a factor that comes straight from a weight.  Guarantees: the same function; the module's graph and
    the rows that the factor comes from, the query's, are changed in place, and `pruned.folded` has them.

    Raises:
        RewriteError: the factor does not come straight from a weight.
    """
    if not scales:
        return pruned
    propagate_values(pruned, example)
    folded: dict[str, tuple[Tensor, float]] = {}
    for node in list(pruned.graph.nodes):
        if node.name in scales:
            call = call_of(node, pruned, DEFAULT_RULES)
            old, new = constant_of(call), scales[node.name]
            if old is None:
                raise RewriteError(f"{node.name} multiplies by no constant")
            ratio = new / old if call.op in _QUOTIENTS else old / new
            folded |= _fold(pruned, _factor(call, pruned), ratio)
            _write(node, call, new)
    for node in pruned.graph.nodes:
        del node.meta["val"]
    pruned.recompile()
    pruned.folded = folded
    return pruned


def can_fold(module: fx.GraphModule, node: fx.Node) -> bool:
    """Does the factor that a node scales come straight from a weight, and a bias, that the model holds?"""
    try:
        _, origin = _origin(module, _factor(call_of(node, module, DEFAULT_RULES), module))
    except RewriteError:
        return False
    rule = DEFAULT_RULES.get(origin.op)
    bound = {} if rule is None else origin.bind(rule)
    weights = (bound.get("weight"), bound.get("bias"))
    return all(weight is None or weight_name(weight) is not None for weight in weights)


def _factor(call: Call, module: fx.GraphModule) -> fx.Node:
    """Return what is scaled; of a product of matrices, the left one: the query."""
    x = call.args[0] if call.args else call.kwargs["query"]
    assert isinstance(x, fx.Node)
    inner = call_of(x, module, DEFAULT_RULES) if x.op.startswith("call") else None
    factor = inner.args[0] if inner is not None and inner.op in _MATMULS else x
    assert isinstance(factor, fx.Node)
    return factor


def _write(node: fx.Node, call: Call, new: float) -> None:
    if "scale" in node.kwargs:
        node.update_kwarg("scale", new)
    else:
        node.update_arg(1, new)


def _fold(module: fx.GraphModule, factor: fx.Node, ratio: float) -> dict[str, tuple[Tensor, float]]:
    """Scale the rows of the weights that the factor is made of."""
    folded = {}
    path, call = _origin(module, factor)
    rows = _rows(path, _BRINGS[_op(call)])
    rule = DEFAULT_RULES.get(call.op)
    assert rule is not None
    bound = call.bind(rule)
    for weight in (bound.get("weight"), bound.get("bias")):
        if weight is None and bound.get("weight") is not None:
            continue  # no bias
        name = weight_name(weight)
        if name is None:
            raise RewriteError(
                f"the weights of {path[0].name} are computed: no factor can be folded into them"
            )
        owner, _, leaf = name.rpartition(".")
        tensor: Tensor = getattr(module.get_submodule(owner), leaf)
        with torch.no_grad():
            tensor[rows.to(tensor.device)] *= ratio
        folded[name] = rows, ratio
    return folded


def _origin(module: fx.GraphModule, factor: fx.Node) -> tuple[list[fx.Node], Call]:
    """Return the layer that the factor comes from, and the nodes from there to it that only lay it out."""
    path = [factor]
    while path[-1].op.startswith("call"):
        call = call_of(path[-1], module, DEFAULT_RULES)
        if _op(call) in _BRINGS:
            return path[::-1], call
        if _op(call) not in _LAYOUT:
            break
        path.append(path[-1].all_input_nodes[0])
    raise RewriteError(
        f"{factor.name} is scaled, but comes from {path[-1].name}, which no factor can be folded into"
    )


def _op(call: Call) -> str:
    return call.op.removeprefix("aten.")


def _rows(path: list[fx.Node], dim: int) -> Tensor:
    """Find which features of the first node's result end up in the last one's, by sending numbers along."""
    first = path[0].meta["val"]
    numbers = torch.arange(first.shape[dim]).expand(first.movedim(dim, -1).shape)
    sent: dict[fx.Node, Value] = {path[0]: numbers.movedim(-1, dim)}

    def value(node: fx.Node) -> Value:
        return sent[node] if node in sent else node.meta["val"]

    for node in path[1:]:
        args, kwargs = fx.map_arg((node.args, node.kwargs), value)
        if node.op == "call_method":
            sent[node] = getattr(args[0], str(node.target))(*args[1:], **kwargs)
        else:
            assert callable(node.target)
            sent[node] = node.target(*args, **kwargs)
    reached: Tensor = torch.unique(sent[path[-1]])
    return reached
