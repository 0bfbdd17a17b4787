"""Find where each module of a model begins and ends in its captured graph: by the values that pass there."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fxprune.certify.comparison import same_draws
from fxprune.certify.float64 import Float64Interpreter, default_float64, doubled, in_double, in_eval_mode
from fxprune.compiler.native.fingerprint import Fingerprint
from fxprune.compiler.native.structure import doubled_copy, is_inside
from fxprune.graph.example import Example
from fxprune.result.own_code import Ref

__all__ = ["Boundary", "Unknown", "boundaries_of"]


class Unknown:
    """A tensor that the graph does not compute."""


@dataclass(frozen=True)
class Boundary:
    """One call of a module, in terms of the graph's nodes.

    args, kwargs, result: as the module was called and what it returned, with a `Ref` in the place of each
        tensor and number that the graph computes; what it does not is a constant, or an `Unknown`.
    """

    path: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: Any

    @property
    def names(self) -> list[str]:
        """The nodes that stand for the result's tensors."""
        return [v.node for v in pytree.tree_leaves(self.result) if isinstance(v, Ref)]

    @property
    def is_known(self) -> bool:
        """Does the graph compute all that it returns?"""
        return bool(self.names) and not any(isinstance(v, Unknown) for v in pytree.tree_leaves(self.result))


def boundaries_of(
    model: nn.Module, captured: fx.GraphModule, example: Example, removed: Mapping[str, str]
) -> dict[str, list[Boundary]]:
    """List the calls of each module in order.

    Runs the model and its captured graph once each, at full size, in float64.  removed: additions of which
    a branch was left out -> the node that stands for them.
    """
    known = _Values(captured, example, removed)
    double = doubled_copy(model)
    in_eval_mode(double)
    found: dict[str, list[Boundary]] = defaultdict(list)
    open_calls: list[tuple[Any, Any]] = []
    handles = []
    for path, module in double.named_modules():

        def enter(m: nn.Module, args: Any, kwargs: Any) -> None:
            open_calls.append(known.inputs_in(args, kwargs))

        def leave(m: nn.Module, args: Any, kwargs: Any, out: Any, path: str = path) -> None:
            args, kwargs = open_calls.pop()
            found[path].append(Boundary(path, args, kwargs, known.results_in(out, path)))

        handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
        handles.append(module.register_forward_hook(leave, with_kwargs=True))
    with torch.no_grad(), same_draws(double), in_double():
        double(*example.args, **example.kwargs)
    return dict(found)


class _Values(Float64Interpreter):
    """What every node of a graph gives, as fingerprints."""

    def __init__(self, captured: fx.GraphModule, example: Example, removed: Mapping[str, str]) -> None:
        super().__init__(doubled(captured))
        self.removed = removed
        self.of_shape: dict[tuple[int, ...], list[tuple[fx.Node, Fingerprint]]] = defaultdict(list)
        self.numbers: dict[int, list[fx.Node]] = defaultdict(list)
        with torch.no_grad(), same_draws(captured), default_float64():
            self.run_on(example)

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.op != "output" and isinstance(value, Tensor):
            self.of_shape[tuple(value.shape)].append((n, Fingerprint.of(value)))
        elif type(value) is int:
            self.numbers[value].append(n)
        return value

    def inputs_in(self, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """Name the nodes of arguments: of those that give a value the first, which computed it."""

        def first(value: Any) -> Any:
            if isinstance(value, Tensor):
                return self._ref(self._alike(value)[:1])
            nodes = self.numbers.get(value) if type(value) is int else None
            return self._ref(nodes[:1]) if nodes else value

        found: tuple[Any, Any] = pytree.tree_map(first, (args, kwargs))
        return found

    def results_in(self, value: Any, path: str) -> Any:
        """Name the nodes of a result: the last of the module's own that give a value, else of all."""

        def last(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            nodes = self._alike(value)
            own = [n for n in nodes if is_inside(str(n.meta.get("module") or ""), path)]
            return self._ref((own or nodes)[-1:])

        return pytree.tree_map(last, value)

    def _alike(self, value: Tensor) -> list[fx.Node]:
        seen = Fingerprint.of(value)
        return [n for n, known in self.of_shape[seen.shape] if known.matches(seen)]

    def _ref(self, nodes: list[fx.Node]) -> Ref | Unknown:
        if not nodes:
            return Unknown()
        name = nodes[0].name
        while name in self.removed:
            name = self.removed[name]
        return Ref(name)
