"""Functional calls on a module's own weights become calls of a module again.

`F.batch_norm(x, bn.running_mean, ..)` and `aten.linear(x, fc.weight, fc.bias)` turn into `bn(x)` and
`fc(x)`: readable, and trained as layers are (batch norms follow the mode and keep their statistics).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.utils import _pytree as pytree

from fxprune.errors import CaptureError
from fxprune.graph.modes import forward_reads_mode
from fxprune.graph.op_names import op_name
from fxprune.graph.tensors import module_of
from fxprune.passes.counts import renamed

__all__ = ["lift_modules"]

_BATCH_NORM = "input weight bias running_mean running_var training momentum eps"
_DEFAULTS = dict(
    stride=1, padding=0, output_padding=0, dilation=1, groups=1, training=False, momentum=0.1, eps=1e-5
)
_CONV = "input weight bias stride padding dilation groups"
_CONV_TRANSPOSE = "input weight bias stride padding output_padding groups dilation"
_TENSORS = ("weight", "bias", "running_mean", "running_var")

# ranks of what they take -> layers
_BATCH_NORMS = {
    frozenset({2, 3}): nn.BatchNorm1d,
    frozenset({4}): nn.BatchNorm2d,
    frozenset({5}): nn.BatchNorm3d,
}


def lift_modules(module: fx.GraphModule, *, source: nn.Module) -> fx.GraphModule:
    """Make functional calls on a layer's own weights calls of a layer again.

    A call is lifted if all its weights are those of one module of `source` under their usual names, and
    every use of them is such a call, or asks for a dtype or a device; the module itself is not called.
    Needs: `meta["val"]`.
    Guarantees: the same values and the same names of weights.
    """
    calls: dict[str, list[tuple[fx.Node, dict[str, Any]]]] = defaultdict(list)
    for node in module.graph.nodes:
        arguments = _arguments(node)
        path = _owner(arguments, source) if arguments is not None and _is_constant(arguments) else None
        if path is not None and arguments is not None:
            calls[path].append((node, arguments))
    for path, sites in calls.items():
        if _all_uses_are(path, sites, module) and len({_options(a) for _, a in sites}) == 1:
            _lift(module, path, sites, source)
    module.graph.eliminate_dead_code()
    return module


def _lift(
    module: fx.GraphModule, path: str, sites: list[tuple[fx.Node, dict[str, Any]]], source: nn.Module
) -> None:
    (node, arguments), owner = sites[0], source.get_submodule(path)
    if op_name(node.target) == "batch_norm" and not _follows_mode(node, arguments, owner, source):
        return
    ranks = {a["input"].meta["val"].ndim for _, a in sites}
    if op_name(node.target) == "batch_norm" and not any(ranks <= of for of in _BATCH_NORMS):
        raise CaptureError(
            f"{path} normalises tensors of {' and '.join(map(str, sorted(ranks)))} dimensions by one forward "
            f"of its own, which no batch norm of torch does: normalise one kind of tensor by it"
        )
    layer = _layer(op_name(node.target), arguments, owner)
    if layer is None:
        return
    layer._modules = dict(module.get_submodule(path)._modules)  # an activation that lives in a norm
    module.set_submodule(path, layer)
    for node, _ in sites:
        given = _arguments(node) or {}  # once more: the layer before may have been lifted since
        with module.graph.inserting_before(node):
            call = module.graph.call_module(path, (given["input"],))
        call.meta = dict(node.meta)
        node.replace_all_uses_with(call)
        module.graph.erase_node(node)
        renamed(module.graph, {node.name: call.name})


def _arguments(node: fx.Node) -> dict[str, Any] | None:
    """Return the arguments by name, if the node calls one of the liftable functions."""
    if node.op != "call_function":
        return None
    names = _SIGNATURES.get(node.target)  # type: ignore[arg-type]
    if names is None:
        return None
    given = dict(zip(names.split(), node.args, strict=False)) | node.kwargs
    default = _DEFAULTS | ({"eps": None} if op_name(node.target) == "rms_norm" else {})
    return {name: given.get(name, default.get(name)) for name in names.split()}


def _is_constant(arguments: dict[str, Any]) -> bool:
    """Are the options numbers, not computed?  (The weights say what shape is normalised over.)"""
    options = [v for k, v in arguments.items() if k not in ("input", "normalized_shape", *_TENSORS)]
    return not any(isinstance(v, fx.Node) for v in pytree.tree_leaves(options))


def _owner(arguments: dict[str, Any], source: nn.Module) -> str | None:
    """Return the one module that holds exactly these tensors under these names."""
    held = {name: arguments[name] for name in _TENSORS if arguments.get(name) is not None}
    if not held or not all(isinstance(n, fx.Node) and n.op == "get_attr" for n in held.values()):
        return None
    paths = {str(n.target).rpartition(".")[0] for n in held.values()}
    if len(paths) != 1 or any(str(n.target).rpartition(".")[2] != name for name, n in held.items()):
        return None
    path = paths.pop()
    if not path:
        return None
    owner = source.get_submodule(path)
    own = {name for name, t in (*owner._parameters.items(), *owner._buffers.items()) if t is not None}
    return path if own - {"num_batches_tracked"} == set(held) else None


def _all_uses_are(path: str, sites: list[tuple[fx.Node, dict[str, Any]]], module: fx.GraphModule) -> bool:
    if module.graph.find_nodes(op="call_module", target=path):  # it is a layer of its own, maybe another one
        return False
    lifted = {node for node, _ in sites}
    readers = (n for n in module.graph.nodes if n.op == "get_attr" and str(n.target).startswith(path + "."))
    return all(user in lifted or _asks_fact(user) for reader in readers for user in reader.users)


def _asks_fact(node: fx.Node) -> bool:
    """Does a node ask a weight for its dtype or its device alone?"""
    return node.target is getattr and node.args[1] in ("dtype", "device")


def _options(arguments: dict[str, Any]) -> str:
    return str({k: v for k, v in arguments.items() if k not in ("input", "normalized_shape", *_TENSORS)})


def _follows_mode(node: fx.Node, arguments: dict[str, Any], owner: nn.Module, source: nn.Module) -> bool:
    """Is this the eval mode of a batch norm that has two?  (One that is always frozen stays a function.)"""
    if arguments["training"] is not (arguments["running_mean"] is None):
        return False  # of statistics of its own in eval mode, or of the batch's because it keeps none
    caller = source.get_submodule(module_of(node))
    return isinstance(owner, nn.modules.batchnorm._NormBase) and forward_reads_mode(caller)


def _layer(op: str, a: dict[str, Any], owner: nn.Module) -> nn.Module | None:
    """Return a native layer that computes this call, around the owner's own tensors."""
    weight: Any = getattr(owner, "weight", None)
    layer: nn.Module
    with torch.device("meta"):
        if op == "linear":
            layer = nn.Linear(weight.shape[1], weight.shape[0], bias=a["bias"] is not None)
        elif op in ("conv1d", "conv2d", "conv3d"):
            n = int(op[4])
            layer = getattr(nn, f"Conv{n}d")(
                weight.shape[1] * a["groups"],
                weight.shape[0],
                weight.shape[2:],
                stride=_tuple(a["stride"], n),
                padding=a["padding"] if isinstance(a["padding"], str) else _tuple(a["padding"], n),
                dilation=_tuple(a["dilation"], n),
                groups=a["groups"],
                bias=a["bias"] is not None,
            )
        elif op.startswith("conv_transpose"):
            n = int(op[14])
            layer = getattr(nn, f"ConvTranspose{n}d")(
                weight.shape[0],
                weight.shape[1] * a["groups"],
                weight.shape[2:],
                stride=_tuple(a["stride"], n),
                padding=_tuple(a["padding"], n),
                output_padding=_tuple(a["output_padding"], n),
                groups=a["groups"],
                bias=a["bias"] is not None,
                dilation=_tuple(a["dilation"], n),
            )
        elif op == "rms_norm":
            layer = nn.RMSNorm(_normalized(owner), eps=a["eps"])
            layer.elementwise_affine = weight is not None
        elif op == "prelu":
            layer = nn.PReLU(weight.shape[0])
        elif op == "layer_norm":
            layer = nn.LayerNorm(_normalized(owner), eps=a["eps"])
            layer.elementwise_affine = weight is not None
        elif op == "group_norm":
            layer = nn.GroupNorm(a["num_groups"], a["input"].meta["val"].shape[1], eps=a["eps"])
        elif op == "batch_norm":
            layer = _batch_norm(a, owner)
        else:
            return None
    absent = {name: None for name in layer._parameters}
    layer._parameters = {**absent, **owner._parameters}
    layer._buffers = dict(owner._buffers)
    layer._non_persistent_buffers_set = set(owner._non_persistent_buffers_set)
    layer.training = owner.training
    return layer


def _batch_norm(a: dict[str, Any], owner: nn.Module) -> nn.Module:
    ndim, features = a["input"].meta["val"].ndim, a["input"].meta["val"].shape[1]
    cls = next(cls for ranks, cls in _BATCH_NORMS.items() if ndim in ranks)
    momentum = getattr(owner, "momentum", a["momentum"])
    tracked = a["running_mean"] is not None
    return cls(features, a["eps"], momentum, affine=a["weight"] is not None, track_running_stats=tracked)


def _normalized(owner: nn.Module) -> tuple[int, ...]:
    held = (getattr(owner, name, None) for name in ("weight", "bias"))
    return next(tuple(t.shape) for t in held if t is not None)


def _tuple(value: Any, n: int) -> tuple[int, ...]:
    if isinstance(value, int):
        return (value,) * n
    return tuple(value) if len(value) == n else tuple(value) * n


_aten = torch.ops.aten
_SIGNATURES: dict[Callable[..., Any], str] = {
    F.linear: "input weight bias",
    F.conv1d: _CONV,
    F.conv2d: _CONV,
    F.conv3d: _CONV,
    F.conv_transpose1d: _CONV_TRANSPOSE,
    F.conv_transpose2d: _CONV_TRANSPOSE,
    F.conv_transpose3d: _CONV_TRANSPOSE,
    F.prelu: "input weight",
    F.layer_norm: "input normalized_shape weight bias eps",
    F.group_norm: "input num_groups weight bias eps",
    F.batch_norm: "input running_mean running_var weight bias training momentum eps",
    _aten.linear.default: "input weight bias",
    _aten.conv1d.default: _CONV,
    _aten.conv2d.default: _CONV,
    _aten.conv2d.padding: _CONV,
    _aten.conv3d.default: _CONV,
    _aten.conv_transpose1d.default: _CONV_TRANSPOSE,
    _aten.conv_transpose2d.input: _CONV_TRANSPOSE,
    _aten.conv_transpose3d.input: _CONV_TRANSPOSE,
    _aten.rms_norm.default: "input normalized_shape weight eps",
    _aten.prelu.default: "input weight",
    _aten.layer_norm.default: "input normalized_shape weight bias eps",
    _aten.group_norm.default: "input num_groups weight bias eps",
    _aten.batch_norm.default: _BATCH_NORM,
}
