"""Write another constant into a product, and fold the ratio into the weights that bring the factor.

`(x @ w) * 0.125` is `(x @ (0.5 * w)) * 0.25`: so an attention gets the scale that its new head dim has
in the stock model, and its query projection takes up the difference; the key's, where more than the products
reads the queries (a table of relative positions).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

import torch
from torch import Tensor, fx

from fxprune.errors import RewriteError
from fxprune.graph.example import Example
from fxprune.graph.nests import Value
from fxprune.graph.tensors import named_tensors, tensor_at
from fxprune.graph.values import propagate_values
from fxprune.result.pruned_module import PrunedModule
from fxprune.rules.calls import Call, call_of
from fxprune.rules.multiples import FEATURES, PRODUCTS, QUOTIENTS, Multiple, is_fact, multiple_of
from fxprune.rules.pieces import Piece, pieces_of, reads_rows
from fxprune.rules.registry import DEFAULT_RULES

__all__ = ["can_fold", "constant_of", "fold_scales"]

_ATTENTION = "scaled_dot_product_attention"
_MATMULS = ("matmul", "bmm")


def constant_of(call: Call) -> float | None:
    """Return the constant that an attention or product multiplies (or divides) by; None if there is none."""
    if call.plain_op == _ATTENTION:
        scale = call.kwargs.get("scale")
    elif call.op in (*PRODUCTS, *QUOTIENTS) and len(call.args) == 2 and isinstance(call.args[0], fx.Node):
        scale = call.args[1]
    else:
        return None
    return float(scale) if isinstance(scale, (int, float)) and not isinstance(scale, bool) else None


def fold_scales(pruned: PrunedModule, *, scales: Mapping[str, float], example: Example) -> PrunedModule:
    """Write other constants into products, and fold the difference into the weights before them.

    `scales` are the new constants by the names of their nodes.

    Needs: a factor that is a multiple of what a layer gives.  Guarantees: the same function; the module's
    graph and the rows that the factor comes from, the query's or the key's, are changed in place, and
    `pruned.folded` has them.

    Raises:
        RewriteError: the factor is none, or the layer's weights are computed or read elsewhere as well.
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
            ratio = new / old if call.op in QUOTIENTS else old / new
            folded |= _fold(pruned, _origin(pruned, node), ratio)
            _write(node, call, new)
    for node in pruned.graph.nodes:
        del node.meta["val"]
    pruned.recompile()
    pruned.folded = folded
    return pruned


def can_fold(module: fx.GraphModule, node: fx.Node) -> bool:
    """Is the factor that a node scales a multiple of weights, and biases, that nothing else reads?"""
    try:
        factor = _origin(module, node)
    except RewriteError:
        return False
    return _rows_held(module, factor) is not None


def _rows_held(module: fx.GraphModule, factor: Multiple) -> list[Piece] | None:
    """Return the pieces of a factor's weights and biases; None if a layer has none, or computes it."""
    if any(_weights(call)[0] is None for call in factor.calls.values()):
        return None
    held = [weight for call in factor.calls.values() for weight in _weights(call) if weight is not None]
    pieces = [pieces_of(weight, module) for weight in held]
    return None if None in pieces else [piece for of in pieces for piece in of or ()]


def _weights(call: Call) -> tuple[Value, Value]:
    """Return the weight and the bias of a layer's call."""
    rule = DEFAULT_RULES.get(call.op)
    bound = {} if rule is None else call.bind(rule)
    return bound.get("weight"), bound.get("bias")


def _others(module: fx.GraphModule, rows: Collection[Piece], factor: Multiple) -> Iterator[fx.Node]:
    """List what reads rows of weights besides a factor's layers, or through what joins or parts them."""
    layers = factor.calls
    scaled = {id(piece.tensor) for piece in rows}
    for node in module.graph.nodes:
        if node.op == "call_module" and node not in layers:
            inner = module.get_submodule(str(node.target))
            if any(id(t) in scaled for _, t in named_tensors(inner)):
                yield node
        elif node.op == "get_attr":
            held = tensor_at(module, str(node.target))
            readers = [*node.users] if id(held) in scaled else []
            while readers:
                user = readers.pop()
                if user in layers:
                    continue
                further = reads_rows(user, rows, module)
                if further is None:
                    yield user
                readers += further or ()


def _factors(node: fx.Node, module: fx.GraphModule) -> list[tuple[fx.Node, fx.Node]]:
    """List what a node scales, each with what reads it: of a product of matrices the query, then the key.

    Raises:
        RewriteError: something else reads the product.
    """
    call = call_of(node, module, DEFAULT_RULES)
    x = call.args[0] if call.args else call.kwargs["query"]
    assert isinstance(x, fx.Node)
    if call.plain_op == _ATTENTION:
        keys = call.args[1] if len(call.args) > 1 else call.kwargs["key"]
        return [(x, node), *([(keys, node)] if isinstance(keys, fx.Node) else [])]
    inner = call_of(x, module, DEFAULT_RULES) if x.op.startswith("call") else None
    if inner is None or inner.op not in (*_MATMULS, "einsum"):
        return [(x, node)]
    factors = [*inner.args]
    if inner.op == "einsum":
        factors = [*factors[1]] if isinstance(factors[1], (list, tuple)) else factors[1:]
    if len(factors) != 2 or not all(isinstance(factor, fx.Node) for factor in factors):
        return [(x, node)]
    if any(user is not node and not is_fact(user) for user in x.users):
        raise RewriteError(f"{x.name} is read without its scale as well")
    return [(factor, x) for factor in factors if isinstance(factor, fx.Node)]


def _write(node: fx.Node, call: Call, new: float) -> None:
    if "scale" in node.kwargs:
        node.update_kwarg("scale", new)
    else:
        node.update_arg(1, new)


def _fold(module: fx.GraphModule, factor: Multiple, ratio: float) -> dict[str, tuple[Tensor, float]]:
    """Scale the rows of the weights that the factor is made of."""
    folded = dict[str, tuple[Tensor, float]]()
    for layer, call in factor.calls.items():
        rows = _rows(factor, layer, FEATURES[call.plain_op])
        weight, bias = _weights(call)
        for held in (weight,) if bias is None else (weight, bias):
            pieces = pieces_of(held, module)
            if pieces is None:
                raise RewriteError(
                    f"the weights of {layer.name} are computed: no factor can be folded into them"
                )
            start = 0
            for piece in pieces:
                tensor, count = piece.tensor, piece.stop - piece.start
                own = rows[(rows >= start) & (rows < start + count)] - start + piece.start
                start += count
                done = (
                    folded[piece.name][0] if piece.name in folded else own[:0]
                )  # a layer that is called twice
                own = own[~torch.isin(own, done)]
                if len(own) and not piece.is_zero:
                    with torch.no_grad():
                        tensor[own.to(tensor.device)] *= ratio
                    folded[piece.name] = torch.cat([done, own]).sort().values, ratio
    return folded


def _origin(module: fx.GraphModule, node: fx.Node) -> Multiple:
    """Return the layers that what a node scales comes from: the query, or else the key.

    Raises:
        RewriteError: neither comes from any, or more than the factor would be scaled.
    """
    factors = _factors(node, module)
    for factor, reader in factors:
        found = multiple_of(module, factor, reader)
        if found is not None and not any(_others(module, _rows_held(module, found) or (), found)):
            return found
    raise RewriteError(f"{factors[0][0].name} is scaled, and is no multiple of what layers of its own give")


def _rows(factor: Multiple, layer: fx.Node, dim: int) -> Tensor:
    """Find which features of a layer's result end up in the factor.

    By sending numbers along; where anything is computed in between, by which of them it depends on, whatever
    else goes in.
    """
    first = layer.meta["val"]
    if factor.is_layout:
        numbers = torch.arange(first.shape[dim]).expand(first.movedim(dim, -1).shape)
        reached: Tensor = torch.unique(_sent(factor, layer, numbers.movedim(-1, dim)))
        return reached
    with torch.enable_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        start = _noise(first).requires_grad_()
        end = _sent(factor, layer, start)
        end = torch.view_as_real(end) if end.is_complex() else end
        (slope,) = torch.autograd.grad((end * _noise(end)).sum(), start)
    return slope.movedim(dim, -1).flatten(0, -2).abs().amax(0).nonzero()[:, 0]


def _sent(factor: Multiple, layer: fx.Node, start: Tensor) -> Tensor:
    """Compute a factor with another tensor in the place of a layer's result."""
    sent: dict[fx.Node, Value] = {layer: start}

    def value(node: fx.Node) -> Value:
        known = sent[node] if node in sent else node.meta["val"]
        is_other = isinstance(known, Tensor) and node not in sent and not factor.is_layout
        return _noise(known) if is_other else known

    for node in factor.nodes:
        if node in factor.calls:
            continue
        args, kwargs = fx.map_arg((node.args, node.kwargs), value)
        if node.op == "call_method":
            sent[node] = getattr(args[0], str(node.target))(*args[1:], **kwargs)
        else:
            assert callable(node.target)
            sent[node] = node.target(*args, **kwargs)
    end: Tensor = sent[factor.nodes[-1]]
    return end


def _noise(like: Tensor) -> Tensor:
    """Draw a tensor of the shape and type of another, without zeros."""
    kind = like.dtype if like.is_floating_point() or like.is_complex() else torch.float32
    return torch.rand(like.shape, dtype=kind) + 1.0
