"""Digests that tell whether two models are the same but for the numbers in their weights."""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from fxprune.graph.as_data import own_name
from fxprune.graph.nests import PLAIN
from fxprune.graph.own_nodes import is_guard
from fxprune.graph.refuse_train_mode import refusing_paths
from fxprune.graph.tensors import called_modules

__all__ = [
    "FORMAT_1",
    "graph_digest",
    "json_digest",
    "layout_digest",
    "settings_digest",
    "unguarded_digest",
    "weights_digest",
]

_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


def layout_digest(state: Mapping[str, object]) -> str:
    """Digest the names and shapes of a `state_dict`: the same architecture, at the same sizes?"""
    return json_digest({name: _shape(value) for name, value in state.items()})


def _shape(value: object) -> object:
    return list(value.shape) if isinstance(value, Tensor) else type(value).__name__  # a module's extra state


def weights_digest(state: Mapping[str, Tensor]) -> str:
    """Digest the names, shapes, precisions and values of a `state_dict`."""
    found = hashlib.sha256(layout_digest(state).encode())
    for name, value in sorted(state.items()):
        if isinstance(value, Tensor):  # else a module's extra state
            found.update(f"{name} {value.dtype}".encode())
            found.update(_bytes_of(value))
    return found.hexdigest()


def _bytes_of(tensor: Tensor) -> bytes:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


# How folders of format 1 spell our own functions and classes: by the files that they stood in then.
FORMAT_1 = {
    "fxprune::written": "fxprune.capture.writes.written",
    "fxprune::guard_branch": "fxprune.capture.decisions.holds",
    "fxprune::ModeValue": "fxprune.capture.merge_modes.ModeValue",
    "fxprune::AutogradFunction": "fxprune.capture.autograd_functions.AutogradFunction",
    "fxprune::split_by_sizes": "fxprune.rules.joining.split_by_sizes",
    "fxprune::_getitem": "fxprune.passes.shrink._getitem",
}


def unguarded_digest(module: fx.GraphModule) -> str:
    """Digest a graph in the spelling of format 1, as if nothing were guarded."""
    bare = fx.Graph()
    bare.output(bare.graph_copy(module.graph, {}))
    for node in reversed([n for n in bare.nodes if is_guard(n)]):
        if not node._erased:
            _erase_with_inputs(node)
    for node in [n for n in bare.nodes if n.op == "placeholder" and n.args]:
        node.args = ()
        if not node.users:
            bare.erase_node(node)
    unguarded = copy.copy(module)
    unguarded.__dict__ = {**module.__dict__, "_graph": bare}
    return graph_digest(unguarded, FORMAT_1)


def _erase_with_inputs(node: fx.Node) -> None:
    """Erase a node, and what only it needed."""
    inputs = node.all_input_nodes
    node.graph.erase_node(node)
    for given in inputs:
        if not given.users:
            _erase_with_inputs(given)


def graph_digest(module: fx.GraphModule, own: Mapping[str, str] | None = None) -> str:
    """Digest all that a graph computes with but tensors' values: calls, constants, layers' settings.

    Two graphs with one digest compute the same function of the same weights.  Functions and modules of our
    own stand under names that no move of a file changes (`fxprune::written`), or under those of `own`.
    """
    refusing = refusing_paths(module)  # they compute nothing
    nodes = [n for n in module.graph.nodes if n.op != "call_module" or n.target not in refusing]
    number = _Numbers({node: i for i, node in enumerate(nodes)}, own or {})
    lines = [
        [n.op, _spelled(n.target, number), _spelled(n.args, number), _spelled(_computed(n), number)]
        for n in nodes
    ]
    called = sorted({*called_modules(module)} - refusing)
    layers = {path: _settings(module.get_submodule(path), number) for path in called}
    return json_digest([lines, layers])


def settings_digest(layer: nn.Module) -> str:
    """Digest a layer's class, settings and the shapes of its tensors: all but its numbers."""
    shapes = {name: list(t.shape) for name, t in layer.state_dict().items() if isinstance(t, Tensor)}
    return json_digest([_settings(layer, _Numbers({}, {})), shapes])


def _computed(node: fx.Node) -> Mapping[str, object]:
    """Return the arguments by name without those that are only words: a path on this machine."""
    return {} if is_guard(node) else node.kwargs


def json_digest(value: object) -> str:
    """Digest a value written as canonical JSON (SHA-256)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class _Numbers:
    """How a digest spells nodes, by their numbers, and functions and classes, by names; `own`: of ours."""

    of: Mapping[fx.Node, int]
    own: Mapping[str, str]

    def name(self, value: object) -> str:
        own = own_name(value)
        if own is not None:
            return self.own.get(own, own)
        return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', value)}"


def _settings(module: nn.Module, number: _Numbers) -> list[object]:
    """Return a layer's class and its simple attributes, and those of the layers in it."""
    own = {
        k: _spelled(v, number)
        for k, v in sorted(vars(module).items())
        if not k.startswith("_") and k != "training" and _is_simple(v)
    }
    inner: list[object] = [[name, _settings(child, number)] for name, child in module.named_children()]
    first: dict[int, str] = {}
    for name, child in module._modules.items():  # `Sequential(linear, act, linear, act)` calls one twice
        if child is not None and first.setdefault(id(child), name) != name:
            inner.append([name, {"same": first[id(child)]}])
    return [number.name(type(module)), module.extra_repr(), own, inner]


def _is_simple(value: object) -> bool:
    if isinstance(value, (tuple, list)):
        return all(map(_is_simple, value))
    return isinstance(value, PLAIN)


def _spelled(value: object, number: _Numbers) -> object:
    if isinstance(value, fx.Node):
        return {"node": number.of[value]}
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
        return number.name(value)
    return _ADDRESS.sub("", repr(value))
