"""Guard the arguments of forward that a capture took as they were: flags, words, and what was left out."""

from __future__ import annotations

import inspect
from enum import Enum
from typing import Any

from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fxprune.graph.example import Example
from fxprune.graph.nests import PLAIN
from fxprune.graph.own_nodes import (
    guard_argument,
    guard_dtype,
    guard_kind,
    guard_layout,
    guard_tensor,
    kind_of,
    layout_of_argument,
)

__all__ = ["followed_parts", "guard_arguments", "guard_layouts", "is_followed"]


def is_followed(value: Any) -> bool:
    """Can a graph follow other values of an argument: tensors, numbers, and nests of them?

    Flags, words, members of an enumeration and None are looked at by Python itself (`mask is None`,
    `MODES[mode]`).
    """
    leaves = pytree.tree_leaves(value, is_leaf=lambda v: v is None)
    return bool(leaves) and not any(v is None or isinstance(v, (bool, str, Enum)) for v in leaves)


def followed_parts(value: Any, stand_in: Any) -> Any:
    """Return a nest of an argument with `stand_in`'s items for what a graph follows, and flags as they are.

    Raises:
        NotImplementedError: tensors and flags stand in a container of another kind than list, tuple or dict.
    """
    if is_followed(value):
        return stand_in
    if type(value) in (list, tuple):
        return type(value)(followed_parts(v, stand_in[i]) for i, v in enumerate(value))
    if type(value) is dict:
        return {key: followed_parts(v, stand_in[key]) for key, v in value.items()}
    if any(isinstance(v, Tensor) for v in pytree.tree_leaves(value)):
        raise NotImplementedError(f"an argument is a {type(value).__name__} of tensors and of flags")
    return value


def guard_arguments(
    graph: fx.Graph, model: nn.Module, example: Example, *, numbers: bool, asks: str | None = None
) -> None:
    """Give a captured graph all parameters of the model's forward, and refuse what it does not compute.

    Needs one placeholder for each argument of the example, in its order.  Guarantees: each parameter that
    has a plain default has a placeholder with that default, in the order of the signature; a flag, a word or
    None is that of the example; a nest has the example's layout.

    numbers: does the graph follow numbers that are arguments?  Otherwise they are guarded as well, and so is
        whether a tensor holds truths, whole numbers or real ones.
    asks: a line that asks for a dtype, where it is not known of what: then whole numbers are guarded too.
    """
    parameters = inspect.signature(model.forward).parameters
    inputs = {str(n.target): n for n in graph.nodes if n.op == "placeholder"}
    values = dict(zip(inputs, (*example.args, *example.kwargs.values()), strict=True))
    after = _in_order(graph, parameters, inputs)
    for name, node in inputs.items():
        parameter = parameters.get(name)
        # One of `**kwargs` needs a default where it stands behind what has one.
        unnamed = None if any(n.args for n in inputs.values()) else inspect.Parameter.empty
        default = parameter.default if parameter else unnamed
        value = values.get(name, default)
        if default is not inspect.Parameter.empty and _is_plain(default):
            node.args = (default,)
        after = _guard(graph, after, node, value, numbers and name in values)
        if isinstance(value, Tensor) and not numbers:  # torch.export does not say what its dtype decided
            with graph.inserting_after(after):
                after = graph.call_function(guard_kind, (node, kind_of(value)), {"name": node.name})
            if asks and kind_of(value) == "whole numbers":
                with graph.inserting_after(after):
                    after = graph.call_function(getattr, (node, "dtype"))
                with graph.inserting_after(after):
                    after = graph.call_function(guard_dtype, (after, value.dtype), {"where": asks})


def guard_layouts(graph: fx.Graph, lines: dict[fx.Node, str]) -> None:
    """Guard that inputs are contiguous, of which the lines of the model's code may compute something."""
    inputs = [n for n in graph.nodes if n.op == "placeholder"]
    for node, where in lines.items():
        with graph.inserting_after(inputs[-1]):
            graph.call_function(guard_layout, (node, True), {"name": node.name, "where": where})


def _in_order(graph: fx.Graph, parameters: Any, inputs: dict[str, fx.Node]) -> fx.Node:
    """Add the placeholders that are missing, all in the order of the signature.  Returns the last."""
    kinds = inspect.Parameter
    if any(p.kind is kinds.VAR_POSITIONAL for p in parameters.values()) or not set(inputs) <= set(parameters):
        return list(inputs.values())[-1]
    last: fx.Node | None = None
    for name, parameter in parameters.items():
        node = inputs.get(name)
        if node is None:
            if parameter.kind is kinds.VAR_KEYWORD or not _is_plain(parameter.default):
                continue
            with graph.inserting_before(next(iter(graph.nodes))):
                node = inputs[name] = graph.placeholder(name)
        if last is None:
            next(iter(graph.nodes)).prepend(node)
        else:
            last.append(node)
        last = node
    assert last is not None
    return last


def _guard(graph: fx.Graph, after: fx.Node, node: fx.Node, value: Any, numbers: bool) -> fx.Node:
    """Insert the guard that an argument of this value needs.  Returns the last node inserted so far."""
    has_tensors = any(isinstance(v, Tensor) for v in pytree.tree_leaves(value))
    followed = is_followed(value) and (numbers or has_tensors)
    target, given, expected = guard_argument, node, value
    with graph.inserting_after(after):
        if isinstance(value, Tensor):
            if not node.args:  # it can't be left out
                return after
            target, expected = guard_tensor, True
        elif isinstance(value, Enum):
            after = given = graph.call_function(str, (node,))
            expected = str(value)
        elif followed or not _is_plain(value):
            if not isinstance(value, (list, tuple, dict)):
                return after
            baked = () if numbers else (True,)
            after = given = graph.call_function(layout_of_argument, (node, *baked))
            expected = layout_of_argument(value, *baked)
    with graph.inserting_after(after):
        return graph.call_function(target, (given, expected), {"name": node.name})


def _is_plain(value: Any) -> bool:
    """Can it stand in a graph, and in its code?"""
    if isinstance(value, (list, tuple)):
        return type(value) in (list, tuple) and all(map(_is_plain, value))
    if isinstance(value, dict):
        return type(value) is dict and all(isinstance(k, str) and _is_plain(v) for k, v in value.items())
    return isinstance(value, PLAIN) and not isinstance(value, Enum)
