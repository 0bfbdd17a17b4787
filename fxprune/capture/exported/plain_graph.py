"""Bring an exported graph to the form of symbolic tracing's: own names, plain inputs and outputs."""

from __future__ import annotations

import collections
import dataclasses
import operator
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._export.passes._node_metadata_hook import _EMPTY_NN_MODULE_STACK_KEY
from torch.utils import _pytree as pytree

from fxprune.capture.devices import kind_told
from fxprune.capture.exported.casts import forget_aliases
from fxprune.capture.exported.constants import name_of_constant
from fxprune.capture.exported.nested_inputs import nested_inputs
from fxprune.capture.precisions import AUTOCAST_ON
from fxprune.graph.own_nodes import (
    autocast_back,
    autocast_off,
    default_dict,
    in_other_order,
    name_of_class,
    output_in_order,
)
from fxprune.graph.source_files import is_users

__all__ = ["users_line"]

_aten = torch.ops.aten


def _plain_graph(program: torch.export.ExportedProgram, model: nn.Module) -> fx.Graph:
    """Return the exported graph with the original's names, inputs and nested outputs."""
    source = program.module(check_guards=False)
    graph = fx.Graph()
    copied = nested_inputs(graph, source.graph, program.call_spec.in_spec, model)
    for node in source.graph.nodes:
        if node in copied or (node.op == "call_module" and node.target == "_guards_fn"):
            continue
        if node.op == "output":
            leaves = [copied.get(leaf, leaf) for leaf in node.args[0]]
            graph.output(_nested(graph, program.call_spec.out_spec, iter(leaves)))
            continue
        if node.op == "get_attr":
            name = name_of_constant(model, source, str(node.target))
            if name is None:  # the body of a region, inlined where it is called
                continue
            node.target = name
        _copy_node(graph, node, copied, source, model)
    forget_aliases(graph)
    _close_norms(graph)
    _forget_layout(graph)
    _keep_sizes_open(graph)
    return graph


# What `run_decompositions` makes of a batch norm in eval mode, and of one without statistics of its own.
_DECOMPOSED_NORMS: dict[Any, Callable[..., tuple[Any, ...]]] = {
    _aten._native_batch_norm_legit_no_training.default: lambda x, weight, bias, mean, var, momentum, eps: (
        *(x, weight, bias, mean, var, False, momentum, eps, False),
    ),
    _aten._native_batch_norm_legit.no_stats: lambda x, weight, bias, training, momentum, eps: (
        *(x, weight, bias, None, None, training, momentum, eps, False),
    ),
}


def _close_norms(graph: fx.Graph) -> None:
    """Replace batch norms that also return what their derivative needs by plain ones."""
    for node in list(graph.nodes):
        if node.target not in _DECOMPOSED_NORMS or any(user.args[1] != 0 for user in node.users):
            continue
        with graph.inserting_before(node):
            whole = graph.call_function(_aten.batch_norm.default, _DECOMPOSED_NORMS[node.target](*node.args))
        whole.meta = dict(node.meta)
        for user in list(node.users):
            user.replace_all_uses_with(whole)
            graph.erase_node(user)
        graph.erase_node(node)


def _forget_layout(graph: fx.Graph) -> None:
    """Turn views into reshapes: strides are no part of what a model computes, and differ between modes.

    A copy into other memory is its source in another layout and dtype.
    """
    for node in list(graph.nodes):
        if node.target in (_aten.view.default, _aten._unsafe_view.default):
            node.target = _aten.reshape.default
        elif node.target is _aten.copy.default:  # which has no derivative
            with graph.inserting_before(node):
                source = graph.call_method("type_as", (node.args[1], node.args[0]))
                filled = graph.call_method("expand_as", (source, node.args[0]))
            source.meta, filled.meta = dict(node.meta), dict(node.meta)
            node.replace_all_uses_with(filled)
            graph.erase_node(node)
        elif node.target is _aten.contiguous.default:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)


_METHODS = {_aten.reshape.default: "reshape", _aten.expand.default: "expand", _aten.repeat.default: "repeat"}


def _keep_sizes_open(graph: fx.Graph) -> None:
    """Spell what takes sizes of inputs as Python does: torch.jit.trace records numbers for ATen calls."""
    sizes: set[fx.Node] = set()
    for node in graph.nodes:
        if node.target is _aten.sym_size.int:
            node.op, node.target = "call_method", "size"
            sizes.add(node)
        elif sizes.isdisjoint(node.all_input_nodes):
            continue
        elif sizes.issuperset(node.all_input_nodes) and not isinstance(node.target, torch._ops.OpOverload):
            sizes.add(node)  # computed of sizes alone
        elif node.target in _METHODS and len(node.args) == 2 and not node.kwargs:
            node.op, node.target = "call_method", _METHODS[node.target]
        elif node.target is _aten.slice.Tensor and len(node.args) > 3 and not node.kwargs:
            source, dim, *bounds = node.args
            if isinstance(dim, int) and dim >= 0:
                index: Any = (*(slice(None) for _ in range(dim)), slice(*(*bounds, None)[:3]))
                node.target, node.args = operator.getitem, (source, index)


def _copy_node(
    graph: fx.Graph,
    node: fx.Node,
    copied: dict[fx.Node, fx.Node],
    source: fx.GraphModule,
    model: nn.Module,
) -> None:
    where = users_line(node.meta.get("stack_trace"))
    if node.target is torch.ops.fxprune.layer_marker.default:
        source_of, path = node.args
        new = graph.call_module(str(path), (fx.map_arg(source_of, lambda n: copied[n]),))
    elif node.op == "call_function" and isinstance(node.target, torch._ops.HigherOrderOperator):
        copied[node] = _inlined(graph, node, copied, source, model)
        return
    elif node.target is operator.getitem and isinstance(copied[node.args[0]], (tuple, list)):  # type: ignore[index]
        copied[node] = copied[node.args[0]][node.args[1]]  # type: ignore[index]  # of an inlined region
        return
    else:
        new = graph.node_copy(node, lambda n: copied[n])
    new.meta = {"where": where, "module": _module_path(node)}
    if isinstance(node.meta.get("val"), Tensor):
        new.meta["dtype"] = node.meta["val"].dtype
    copied[node] = new


def _inlined(
    graph: fx.Graph,
    node: fx.Node,
    copied: dict[fx.Node, fx.Node],
    source: fx.GraphModule,
    model: nn.Module,
) -> Any:
    """Return the body of a no-grad or autocast region in place of the call."""
    bodies = {i: body for i, a in enumerate(node.args) if (body := _body_at(a, source)) is not None}
    body_at, body = next(iter(bodies.items()), (0, None))
    taken = [] if body is None else body.graph.find_nodes(op="placeholder")
    if body is None or len(bodies) > 1 or len(taken) != len(node.args) - body_at - 1:
        where = users_line(node.meta.get("stack_trace")) or node.name
        raise NotImplementedError(f"it calls {node.target} at {where}, which no graph holds")
    if "autocast" in str(node.target):
        tensors = ((new, old.meta.get("val")) for old, new in copied.items() if isinstance(new, fx.Node))
        held = next(((new, t.device.type) for new, t in tensors if isinstance(t, Tensor)), None)
        own = held is not None and kind_told(held[1]) == node.args[0]
        if own and node.args[2]:
            raise NotImplementedError(AUTOCAST_ON)
        if not node.args[2]:
            device: Any = torch.device(str(node.args[0]))  # the result may be moved there
            if held is not None and own:
                device = graph.call_function(getattr, (held[0], "device"))
            before = graph.call_function(autocast_off, (device,))
            result = _body(graph, node, body, body_at, copied, model)
            graph.call_function(autocast_back, (before, device))
            return result
    return _body(graph, node, body, body_at, copied, model)


def _body_at(argument: Any, source: fx.GraphModule) -> fx.GraphModule | None:
    """Return the graph that an argument of a region names, if it is one."""
    if not isinstance(argument, fx.Node) or argument.op != "get_attr":
        return None
    found = dict(source.named_modules()).get(str(argument.target))
    return found if isinstance(found, fx.GraphModule) else None


def _body(
    graph: fx.Graph,
    node: fx.Node,
    body: nn.Module,
    body_at: int,
    copied: dict[fx.Node, fx.Node],
    model: nn.Module,
) -> Any:
    """Return what the nodes of a region give."""
    inner = dict(
        zip(
            (n for n in body.graph.nodes if n.op == "placeholder"),  # type: ignore[union-attr]
            (copied[a] for a in node.args[body_at + 1 :]),  # type: ignore[index]
            strict=True,
        )
    )
    for n in body.graph.nodes:  # type: ignore[union-attr]
        if n.op == "placeholder":
            continue
        if n.op == "output":
            stops = "set_grad" in str(node.target) and node.args[0] is False
            back = partial(_result, graph, inner, stops)
            return pytree.tree_map_only(fx.Node, back, n.args[0])
        _copy_node(graph, n, inner, body, model)  # type: ignore[arg-type]
    raise AssertionError("a graph without an output")


def _result(graph: fx.Graph, inner: dict[fx.Node, fx.Node], stops: bool, node: fx.Node) -> fx.Node:
    """Return what an inlined region returns; without gradients if it ran under `torch.no_grad()`."""
    value = inner[node]
    if not stops:
        return value
    stopped = graph.call_function(_aten.detach.default, (value,))
    stopped.meta = dict(value.meta)
    return stopped


def _nested(graph: fx.Graph, spec: pytree.TreeSpec, leaves: Any) -> Any:
    """Nest the output as the model does: literals for tuples, lists and dicts, else the class's call."""
    if spec.is_leaf():
        return next(leaves)
    children = [_nested(graph, child, leaves) for child in spec.children()]
    if spec.type is tuple:
        return tuple(children)
    if spec.type is list:
        return children
    if spec.type is dict:
        return dict(zip(spec.context, children, strict=True))
    if spec.type is collections.namedtuple:
        return graph.call_function(spec.context, tuple(children))
    if (
        isinstance(spec.type, type)
        and dataclasses.is_dataclass(spec.type)
        and not issubclass(spec.type, dict)
    ):
        return graph.call_function(spec.type, (), dict(zip(spec.context[0], children, strict=True)))
    if spec.type is collections.defaultdict:
        of_names = dict(zip(spec.context[1], children, strict=True))
        return default_dict(graph.call_function, spec.context[0], of_names)
    keys = spec.context if isinstance(spec.context, (list, tuple)) else None
    if spec.type is collections.OrderedDict and keys is not None:  # whose keys need be no names
        return graph.call_function(spec.type, (dict(zip(keys, children, strict=True)),))
    if isinstance(spec.type, type) and issubclass(spec.type, dict) and keys is not None:
        items = dict(zip(keys, children, strict=True))
        if in_other_order(spec.type, keys):
            return graph.call_function(output_in_order, (name_of_class(spec.type), items))
        return graph.call_function(spec.type, (), items)
    if getattr(spec.type, "__module__", "") == "torch.return_types":
        return graph.call_function(spec.type, (tuple(children),))
    if isinstance(spec.type, type) and issubclass(spec.type, tuple):
        return graph.call_function(spec.type, tuple(children))
    raise NotImplementedError(f"an output of type {spec.type} is not understood")


def users_line(trace: str | None) -> str | None:
    """Return the innermost line of a recorded stack that is the model's own."""
    for line in reversed((trace or "").splitlines()):
        file, found, number = line.strip().removeprefix('File "').partition('", line ')
        if found and is_users(file):
            return f"{file}:{number.split(',')[0]}"
    return None


def _module_path(node: fx.Node) -> str:
    """Return the module whose code made an exported node; the root for one that a pass of torch's made."""
    stack = node.meta.get("nn_module_stack") or {}
    key, (path, _) = next(reversed(stack.items()), ("", ("", None)))
    return "" if key == _EMPTY_NN_MODULE_STACK_KEY else path
