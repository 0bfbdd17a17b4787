"""A result that torch.fx traces again: its graph is handed over, node by node, and no code is traced.

Generated code computes with sizes (`int(size)`, `len(shape)`, a slice up to a size, a branch's guard), which
`torch.fx.symbolic_trace` can't follow, though each is a node that it could have.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import fx, nn
from torch.fx.node import map_aggregate

from fxprune.errors import InputArgumentError
from fxprune.graph.nests import Value
from fxprune.graph.precision_nodes import autocast_as_before, autocast_off

__all__ = ["READS_CODE", "traced_as_graph"]

# A tracer with this attribute follows what code does with sizes, and both modes of training: it reads code.
READS_CODE = "reads_generated_code"


def traced_as_graph(forward: Callable[..., Value], graph: fx.Graph | None = None) -> Callable[..., Value]:
    """Wrap the forward of a GraphModule's class, so that it hands its graph to a tracer that calls it.

    graph: what it runs, where the class is no GraphModule's.
    """

    code = forward.__code__
    known = frozenset(code.co_varnames[1 : code.co_argcount + code.co_kwonlyargcount])
    takes_any = bool(code.co_flags & inspect.CO_VARKEYWORDS)
    has_regions = any(name.endswith(autocast_off.__name__) for name in code.co_names)

    @functools.wraps(forward)
    def call(self: nn.Module, *args: Value, **kwargs: Value) -> Value:
        if not takes_any and not known.issuperset(kwargs):
            raise _unknown(kwargs, known)
        for value in (*args, *kwargs.values()):
            if isinstance(value, fx.Proxy) and not hasattr(value.tracer, READS_CODE):
                own: fx.Graph = self.graph if graph is None else graph  # type: ignore[assignment]
                return _handed_over(self, own, value.tracer, args, kwargs)
        if has_regions and not torch.compiler.is_compiling():
            with autocast_as_before():
                return forward(self, *args, **kwargs)
        return forward(self, *args, **kwargs)

    return call


def _unknown(given: Mapping[str, object], known: frozenset[str]) -> Exception:
    """Make the error for a keyword that was not captured: one of `**kwargs`, or unknown to the original."""
    names = ", ".join(sorted(set(given) - known))
    return InputArgumentError(
        f"unexpected keyword argument {names}: the model was captured without it; "
        f"where the original takes it, prune again with example_kwargs={{'{names}': ...}}"
    )


def _handed_over(
    module: nn.Module, graph: fx.Graph, tracer: Value, args: Sequence[Value], kwargs: Mapping[str, Value]
) -> Value:
    path = tracer.path_of_module(module)
    prefix = f"{path}." if path else ""
    given, made = iter(args), dict[fx.Node, Value]()
    named = {str(node.target) for node in graph.nodes if node.op == "placeholder"}

    def value_of(leaf: Value) -> Value:
        return made[leaf] if isinstance(leaf, fx.Node) else leaf

    for node in graph.nodes:
        if node.op == "placeholder":
            default = node.args[0] if node.args else None
            name = str(node.target)
            if name.startswith("**"):
                made[node] = {key: value for key, value in kwargs.items() if key not in named}
            elif name.startswith("*"):
                made[node] = tuple(given)
            else:
                made[node] = next(given, kwargs.get(name, default))
            continue
        operands, words = (_plain(map_aggregate(part, value_of)) for part in (node.args, node.kwargs))
        if node.op == "output":
            return operands[0]
        target = f"{prefix}{node.target}" if node.op in ("get_attr", "call_module") else node.target
        made[node] = tracer.create_proxy(node.op, target, operands, words, node.name)
    return None


def _plain(value: Value) -> Value:
    """Make plain lists and dicts of a graph's own kinds."""
    if isinstance(value, list):
        return [*map(_plain, value)]
    if type(value) is tuple:
        return tuple(map(_plain, value))
    if isinstance(value, dict):
        return {key: _plain(v) for key, v in value.items()}
    return value
