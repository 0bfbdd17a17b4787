"""What a module is called with, in the graph's terms: what its part follows, and takes as it is."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from fxprune.compiler.native.boundaries import Boundary, Number
from fxprune.compiler.native.traits import Traits
from fxprune.graph.nests import PLAIN, Value, placed_leaves
from fxprune.graph.own_nodes import layout_of_argument
from fxprune.result.own_code import Keys, Read, Ref

__all__ = ["PartError", "inputs_of", "plain_arguments", "read_off"]

_GIVEN = (Ref, Number, torch.dtype, torch.device)  # what a part may be given


class PartError(Exception):
    """A module's part of the graph can't stand alone: why."""


def inputs_of(
    module: nn.Module, call: Boundary, traits: Traits
) -> Iterator[tuple[str, tuple[Any, ...], str]]:
    """Find where in the arguments of a call its nodes stand."""
    for name, value in _arguments(module, call).items():
        for keys, leaf in placed_leaves(value, _GIVEN):
            if isinstance(leaf, Ref):
                nodes = [leaf.node, *call.alike.get(leaf.node, ())]
            elif isinstance(leaf, Number):
                nodes = [node for node, values in traits.items() if values == leaf.values]
            else:
                nodes = [node for node, values in traits.items() if {*values} == {leaf}]
            yield from ((name, keys, node) for node in dict.fromkeys(nodes))


def _arguments(module: nn.Module, call: Boundary, *, defaults: bool = False) -> dict[str, Any]:
    """Bind the arguments of a call to the names that the module's code has for them."""
    try:
        bound = inspect.signature(type(module).forward).bind(module, *call.args, **call.kwargs)
    except TypeError as error:
        raise PartError(f"its arguments don't fit its signature: {error}") from error
    if defaults:
        bound.apply_defaults()
    return dict([*bound.arguments.items()][1:])


def plain_arguments(
    module: nn.Module, call: Boundary
) -> tuple[tuple[tuple[str, Keys, Value], ...], tuple[tuple[str, str], ...]]:
    """List the arguments of a call that its part takes as they are, and how nests among them are nested."""
    given, layouts = list[tuple[str, Keys, Value]](), []
    for name, value in _arguments(module, call, defaults=True).items():
        # A `Number` that the graph does not follow may be a size that it has no need of.
        given += [(name, keys, leaf) for keys, leaf in placed_leaves(value, PLAIN)]
        if isinstance(value, (list, tuple, dict)):
            layouts.append((name, layout_of_argument(value)))
    return tuple(given), tuple(layouts)


def read_off(node: str, inputs: tuple[tuple[str, tuple[Any, ...], str], ...], traits: Traits) -> Read | None:
    """Find a size, shape, dtype or device of the model's input that is that of one of the module's inputs."""
    wanted = traits.get(node)
    if wanted is None or type(wanted[0]) is tuple:  # a tensor
        return None
    for _, _, given in inputs:
        tensors = traits.get(given, ())
        if not tensors or type(tensors[0]) is not tuple:
            continue
        shapes, types, devices = zip(*tensors, strict=True)
        if wanted == types:
            return Read(node, given, "dtype")
        if wanted == devices:
            return Read(node, given, "device")
        if wanted == shapes:
            return Read(node, given, "shape")
        sizes = [*zip(*shapes, strict=False)]
        if wanted in sizes:
            return Read(node, given, "size", sizes.index(wanted))
    return None
