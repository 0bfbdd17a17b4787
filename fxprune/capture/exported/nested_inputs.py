"""Arguments that are lists, dicts or objects of tensors: one input each, which the graph takes apart."""

from __future__ import annotations

import collections
import dataclasses
import inspect
import operator
from collections.abc import Callable, Sequence
from typing import Any

from torch import fx, nn
from torch.utils import _pytree as pytree

__all__ = ["nested_inputs"]


def nested_inputs(
    graph: fx.Graph, source: fx.Graph, spec: pytree.TreeSpec, model: nn.Module
) -> dict[fx.Node, fx.Node]:
    """Make one input of each argument that is a list or a dict of tensors, and take it apart.

    Maps the placeholders that export makes of each tensor to what stands for it.
    """
    args, kwargs = spec.children()
    names = [*list(inspect.signature(model.forward).parameters)[: args.num_children], *kwargs.context]
    arguments = [*args.children(), *kwargs.children()]
    if all(argument.is_leaf() for argument in arguments):
        return {}
    leaves = iter([n for n in source.nodes if n.op == "placeholder"])
    inputs = [graph.placeholder(name) for name in names]
    copied: dict[fx.Node, fx.Node] = {}

    def take_apart(value: fx.Node, inside: pytree.TreeSpec) -> None:
        if inside.is_leaf():
            copied[next(leaves)] = value
            return
        take, keys = _keys_of(inside)
        for key, child in zip(keys, inside.children(), strict=True):
            take_apart(graph.call_function(take, (value, key)), child)

    for value, argument in zip(inputs, arguments, strict=True):
        take_apart(value, argument)
    return copied


def _keys_of(spec: pytree.TreeSpec) -> tuple[Callable[..., Any], Sequence[Any]]:
    """Return how the parts of an argument are taken from it, and by which keys."""
    if spec.type is collections.defaultdict:
        return operator.getitem, spec.context[1]
    if isinstance(spec.type, type) and issubclass(spec.type, dict):
        return operator.getitem, spec.context
    if isinstance(spec.type, type) and dataclasses.is_dataclass(spec.type):
        return getattr, spec.context[0]
    return operator.getitem, range(spec.num_children)
