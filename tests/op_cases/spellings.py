"""Every spelling of an argument that PyTorch takes is read as the same call.

The arguments of a captured case are given by keyword, under each name that PyTorch has for them and takes:
the rule must be given the same.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx

from fxprune import DEFAULT_RULES
from fxprune.graph.nests import leaves
from fxprune.graph.op_names import op_name
from fxprune.graph.own_nodes import makes_output
from fxprune.rules.calls import call_of
from fxprune.rules.registry import Rule
from op_cases.case import DUMMY

# Names that PyTorch takes beside those of its signatures.
ALIASES = {
    "dim": ("axis",),
    "keepdim": ("keepdims",),
    "self": ("input", "x"),
    "input": ("x",),
    "other": ("x2",),
}


def signatures(target: Any) -> Iterator[list[str]]:
    """The names of the positional arguments, of each overload."""
    if isinstance(target, torch._ops.OpOverload):
        yield [a.name for a in target._schema.arguments if not a.kwarg_only]
        return
    function = getattr(Tensor, target, None) if isinstance(target, str) else target
    try:
        parameters = inspect.signature(function).parameters.values()  # type: ignore[arg-type]
        yield [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    except (TypeError, ValueError):
        name = op_name(target)
        packet = getattr(torch.ops.aten, name, None) or getattr(torch.ops.aten, name.rstrip("_"), None)
        for overload in packet.overloads() if packet is not None else ():
            yield from signatures(getattr(packet, overload))


def respelled(node: fx.Node) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    """The arguments of a call from each place on by keyword, under each name that they may have."""
    first = 1 if node.op == "call_method" else 0
    for names in signatures(node.target):
        if len(names) < len(node.args):
            continue
        for place in range(first, len(node.args)):
            own = dict(zip(names[place:], node.args[place:], strict=False))
            yield node.args[:place], own | node.kwargs
            for name in own:
                for alias in ALIASES.get(name, ()):
                    renamed = {alias if n == name else n: value for n, value in own.items()}
                    yield node.args[:place], renamed | node.kwargs


def spellings(node: fx.Node, values: dict[fx.Node, Any]) -> Iterator[fx.Node]:
    """Copies of a node in each spelling that PyTorch takes."""
    graph, seen = fx.Graph(), set()
    for args, kwargs in respelled(node):
        if (len(args), *kwargs) in seen:
            continue
        seen.add((len(args), *kwargs))
        given, named = fx.map_arg((args, kwargs), values.__getitem__)
        try:
            if node.op == "call_method":
                getattr(given[0], node.target)(*given[1:], **named)
            else:
                node.target(*given, **named)  # type: ignore[operator]
        except Exception:  # not a spelling of it
            continue
        with graph.inserting_after():
            copy = graph.create_node(node.op, node.target, (), {})
        copy._args, copy._kwargs = args, kwargs  # of another graph: nodes are no users of it
        yield copy


class Recording(fx.Interpreter):
    """Keeps the value of every node, as it was when it was computed."""

    def run_node(self, n: fx.Node) -> Any:
        self.values[n] = value = super().run_node(n)
        return value.clone() if isinstance(value, Tensor) else value

    values: dict[fx.Node, Any]


def assert_read_alike(module: fx.GraphModule) -> None:
    """Each call of a captured probe is the same call to its rule in every spelling."""
    recording = Recording(module)
    recording.values = {}
    with torch.no_grad():
        recording.run(DUMMY)
    for node in module.graph.nodes:
        if node.op not in ("call_function", "call_method") or makes_output(node):
            continue
        call = call_of(node, module, DEFAULT_RULES)
        rule = DEFAULT_RULES.get(call.op)
        if rule is None:
            continue
        wanted = flat(rule, call.bind(rule))
        for copy in spellings(node, recording.values):
            again = call_of(copy, module, DEFAULT_RULES)
            assert again.op == call.op
            assert flat(rule, again.bind(rule)) == wanted, (node.format_node(), copy.args, copy.kwargs)


def flat(rule: Rule, bound: dict[str, Any]) -> dict[str, Any]:
    """Arguments by name; of those that the rule has no names for, the tensors alone."""
    kinds = {name: parameter.kind for name, parameter in rule.signature.parameters.items()}
    various = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    named = {name: value for name, value in bound.items() if kinds[name] not in various}
    others = [value for name, value in bound.items() if kinds[name] in various]
    return named | {"": sorted(n.name for n in leaves(others, fx.Node))}
