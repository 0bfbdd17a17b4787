"""Digests that tell whether two models are the same but for the numbers in their weights."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxprune.graph.own_nodes import is_guard

__all__ = ["graph_digest", "json_digest", "layout_digest"]

_SIMPLE = (bool, int, float, str, type(None))
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


def layout_digest(state: Mapping[str, Tensor]) -> str:
    """Of the names and shapes of a `state_dict`: is this the same architecture, at the same sizes?"""
    return json_digest({name: list(t.shape) for name, t in state.items()})


def graph_digest(module: fx.GraphModule) -> str:
    """Of all that a graph computes with but tensors' values: calls, constants, layers' settings.

    Two graphs with one digest compute the same function of the same weights.
    """
    number = {node: i for i, node in enumerate(module.graph.nodes)}
    lines = [
        [n.op, _spelled(n.target, number), _spelled(n.args, number), _spelled(_computed(n), number)]
        for n in module.graph.nodes
    ]
    called = {str(n.target) for n in module.graph.nodes if n.op == "call_module"}
    layers = {path: _settings(module.get_submodule(path), number) for path in sorted(called)}
    return json_digest([lines, layers])


def _computed(node: fx.Node) -> dict[str, Any]:
    """The arguments by name without those that are only words: a path on this machine."""
    return {} if is_guard(node) else node.kwargs


def json_digest(value: Any) -> str:
    """SHA-256 of a value written as canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _settings(module: nn.Module, number: Mapping[fx.Node, int]) -> list[Any]:
    """A layer's class and its simple attributes, and those of the layers in it."""
    own = {
        k: _spelled(v, number)
        for k, v in sorted(vars(module).items())
        if not k.startswith("_") and k != "training" and _is_simple(v)
    }
    inner = [[name, _settings(child, number)] for name, child in module.named_children()]
    return [f"{type(module).__module__}.{type(module).__qualname__}", module.extra_repr(), own, inner]


def _is_simple(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return all(map(_is_simple, value))
    return isinstance(value, _SIMPLE)


def _spelled(value: Any, number: Mapping[fx.Node, int]) -> Any:
    if isinstance(value, fx.Node):
        return {"node": number[value]}
    if isinstance(value, (tuple, list)):
        return [_spelled(v, number) for v in value]
    if isinstance(value, dict):
        return {str(k): _spelled(v, number) for k, v in value.items()}
    if isinstance(value, slice):
        return {"slice": _spelled((value.start, value.stop, value.step), number)}
    if isinstance(value, (torch.device, torch.dtype)):
        return str(value)
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, (int, float, str)):
        return repr(value)
    if callable(value):
        return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', value)}"
    return _ADDRESS.sub("", repr(value))
