"""Find where each module of a model begins and ends in its captured graph: by the values that pass there."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fxprune.certify.comparison import same_draws
from fxprune.certify.float64 import Float64Interpreter, default_float64, doubled, in_double, in_eval_mode
from fxprune.compiler.native.fingerprint import Fingerprint, Prints, prints_match, prints_of
from fxprune.compiler.native.structure import doubled_copy
from fxprune.graph.example import Example
from fxprune.graph.tensors import is_inside, module_of
from fxprune.result.own_code import Ref

__all__ = ["Boundary", "Number", "Unknown", "boundaries_of"]


@dataclass(frozen=True)
class Number:
    """A whole number among a call's arguments, on each of the examples that the model was run on."""

    values: tuple[int, ...]


class Unknown:
    """A tensor that the graph does not compute."""


@dataclass(frozen=True)
class Boundary:
    """One call of a module, in terms of the graph's nodes.

    args, kwargs, result: as the module was called and what it returned, with a `Ref` in the place of each
        tensor that the graph computes, and an `Unknown` for each that it does not.  Whole numbers among
        the arguments are a `Number`.
    alike: of each node in the arguments, all nodes outside the module that have its value in eval mode
        (before a dropout, and after it): the module may read any of them.
    caller: the module whose code makes the call.
    order: how many calls began before it.
    is_dead: has the graph other calls of this module, but not this one, on which nothing depends?
    """

    path: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: Any
    alike: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    caller: str = ""
    order: int = 0
    is_dead: bool = False

    @property
    def names(self) -> list[str]:
        """The nodes that stand for the result's tensors."""
        return [v.node for v in pytree.tree_leaves(self.result) if isinstance(v, Ref)]

    @property
    def given(self) -> list[str]:
        """The nodes that stand for the tensors among the arguments; empty for each that is unknown."""
        leaves = pytree.tree_leaves((self.args, self.kwargs))
        return [v.node if isinstance(v, Ref) else "" for v in leaves if isinstance(v, (Ref, Unknown))]

    @property
    def is_known(self) -> bool:
        """Does the graph compute all that it returns?"""
        return bool(self.names) and not any(isinstance(v, Unknown) for v in pytree.tree_leaves(self.result))


def boundaries_of(
    model: nn.Module, captured: fx.GraphModule, examples: Sequence[Example], removed: Mapping[str, str]
) -> dict[str, list[Boundary]]:
    """List the calls of each module in order.

    Runs the model and its captured graph at full size, in float64: on the first example for the values, and
    the model on the others for the numbers that it hands to its modules.  removed: additions of which a
    branch was left out -> the node that stands for them.
    """
    known = _Values(captured, examples[0], removed)
    double = doubled_copy(model)
    in_eval_mode(double)
    found = _calls(double, examples[0], known)
    for example in examples[1:]:
        found = _with_numbers(found, _calls(double, example, None))
    return found


def _calls(double: nn.Module, example: Example, known: _Values | None) -> dict[str, list[Boundary]]:
    found: dict[str, list[Boundary]] = defaultdict(list)
    given: dict[str, list[Prints]] = defaultdict(list)
    open_calls: list[Boundary] = []
    order = itertools.count()
    handles = []
    for path, module in double.named_modules():

        def enter(m: nn.Module, args: Any, kwargs: Any, path: str = path) -> None:
            if known and path in known.inputs:
                given[path].append(prints_of((args, kwargs)))
            args, kwargs = pytree.tree_map(_number, (args, kwargs))
            caller = open_calls[-1].path if open_calls else ""
            call = Boundary(path, args, kwargs, None, caller=caller, order=next(order))
            open_calls.append(known.entered(call) if known else call)

        def leave(m: nn.Module, args: Any, kwargs: Any, out: Any, path: str = path) -> None:
            call = open_calls.pop()
            found[path].append(replace(call, result=known.results_in(out, path)) if known else call)

        handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
        handles.append(module.register_forward_hook(leave, with_kwargs=True))
    try:
        with torch.no_grad(), same_draws(double), in_double():
            double(*example.args, **example.kwargs)
    finally:
        for handle in handles:
            handle.remove()
    for path, prints in given.items():
        dead = _dead(prints, known.inputs[path] if known else [])
        if len(dead) == len(found[path]):
            found[path] = [replace(c, is_dead=d) for c, d in zip(found[path], dead, strict=True)]
    return dict(found)


def _dead(calls: Sequence[Prints], kept: Sequence[Prints]) -> list[bool]:
    """Tell which of a module's calls a graph has not, if the others are just those that it has."""
    rest = [*kept]
    dead = []
    for prints in calls:
        dead.append(not (rest and prints_match(prints, rest[0])))
        rest = rest if dead[-1] else rest[1:]
    return dead if not rest else [False] * len(calls)


def _number(value: Any) -> Any:
    return Number((value,)) if type(value) is int else value


def _with_numbers(
    calls: Mapping[str, list[Boundary]], others: Mapping[str, list[Boundary]]
) -> dict[str, list[Boundary]]:
    """Add to each call's numbers those of another run; where calls were more or fewer there, none."""

    def both(a: Any, b: Any) -> Any:
        return Number((*a.values, *b.values)) if isinstance(a, Number) and isinstance(b, Number) else a

    out = {}
    for path, own in calls.items():
        theirs = others.get(path, [])
        out[path] = own if len(theirs) != len(own) else []
        for a, b in zip(own, theirs, strict=False) if not out[path] else ():
            leaves, spec = pytree.tree_flatten((a.args, a.kwargs))
            other = pytree.tree_leaves((b.args, b.kwargs))
            if len(leaves) == len(other):
                leaves = [both(x, y) for x, y in zip(leaves, other, strict=True)]
            args, kwargs = pytree.tree_unflatten(leaves, spec)
            out[path].append(replace(a, args=args, kwargs=kwargs))
    return out


class _Values(Float64Interpreter):
    """What every node of a graph gives, as fingerprints."""

    def __init__(self, captured: fx.GraphModule, example: Example, removed: Mapping[str, str]) -> None:
        super().__init__(doubled(captured))
        self.removed = removed
        self.inputs: dict[str, list[Prints]] = {}
        self.of_shape: dict[tuple[int, ...], list[tuple[fx.Node, Fingerprint]]] = defaultdict(list)
        with torch.no_grad(), same_draws(captured), default_float64():
            self.run_on(example)

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.op != "output" and isinstance(value, Tensor):
            self.of_shape[tuple(value.shape)].append((n, Fingerprint.of(value)))
        return value

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.inputs.setdefault(str(target), []).append(prints_of((args, kwargs)))
        return super().call_module(target, args, kwargs)

    def entered(self, call: Boundary) -> Boundary:
        """Name the nodes of a call's arguments: of those that give a value the first, which computed it."""
        alike: dict[str, tuple[str, ...]] = {}

        def first(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            nodes = self._alike(value)
            if not nodes:
                return Unknown()
            found = self._ref(nodes)
            outside = [n for n in nodes if not is_inside(module_of(n), [call.path])]
            alike[found.node] = tuple(dict.fromkeys(self._ref([n]).node for n in outside))
            return found

        args, kwargs = pytree.tree_map(first, (call.args, call.kwargs))
        return replace(call, args=args, kwargs=kwargs, alike=alike)

    def results_in(self, value: Any, path: str) -> Any:
        """Name the nodes of a result: the last of the module's own that give a value, else of all."""

        def last(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            nodes = self._alike(value)
            own = [n for n in nodes if is_inside(module_of(n), [path])]
            return self._ref((own or nodes)[-1:]) if nodes else Unknown()

        return pytree.tree_map(last, value)

    def _alike(self, value: Tensor) -> list[fx.Node]:
        seen = Fingerprint.of(value)
        return [n for n, known in self.of_shape[seen.shape] if known.matches(seen)]

    def _ref(self, nodes: list[fx.Node]) -> Ref:
        name = nodes[0].name
        while name in self.removed:
            name = self.removed[name]
        return Ref(name)
