"""A typed graph: what inference found, with everything known filled in, as frozen data."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

from torch import Tensor, fx

from fxprune.analysis.counts.find import counts_of
from fxprune.analysis.counts.ledger import Count
from fxprune.analysis.infer import Inference, Step, infer
from fxprune.analysis.outputs import Outputs
from fxprune.graph.captured import Captured
from fxprune.graph.tensors import modules_around, named_tensors, tensor_at
from fxprune.rules.axes import Atom, Axis, Reason, atoms_of
from fxprune.rules.calls import Weight
from fxprune.rules.registry import Axes, Flow, RuleSet, map_axes

__all__ = ["Site", "TypedGraph", "atoms_in", "type_graph"]


@dataclass(frozen=True, order=True)
class Site:
    """A place in the weights that carries an axis: a name in `state_dict` and a dimension."""

    name: str
    dim: int

    def __str__(self) -> str:
        return f"{self.name}[{self.dim}]"


@dataclass(frozen=True, eq=False)
class TypedGraph:
    """A captured graph and the axes of all its values and weights; nothing in it is left to solve.

    captured: the graph.
    rules, outputs: what it was typed by.
    names: every name that the model has for a tensor -> the name in the graph.
    axes: for each node, the axes of every tensor that it returns.
    weights: the axes of each parameter and buffer in use, by its name in the graph.
    steps: each call as its rule understood it, with resolved axes, but for its flow's `out`: see `axes`.
    missing: ops without a rule that covers them -> the nodes that call them.
    reasons: atoms that rules froze, with the reason (those that are born frozen say so themselves).
    counts: calls with arguments that count what a statistic runs over, and which these are.
    """

    captured: Captured
    rules: RuleSet
    outputs: Outputs
    names: Mapping[str, str]
    axes: Mapping[fx.Node, tuple[Axes, ...]]
    weights: Mapping[str, Axes]
    steps: Mapping[fx.Node, Step]
    missing: Mapping[str, tuple[str, ...]]
    reasons: Mapping[Atom, Reason]
    counts: Mapping[fx.Node, Sequence[Count]]

    @property
    def module(self) -> fx.GraphModule:
        return self.captured.module

    def frozen(self, a: Atom) -> Reason | None:
        """Return why an atom must keep all its elements, or None."""
        return self.reasons.get(a) or a.frozen

    def at(self, site: Site) -> Axis:
        """Return the axis of a weight's dimension, by the weight's name in the graph."""
        return self.weights[site.name][site.dim]

    def carried(self, source: fx.Node | Weight) -> frozenset[Atom]:
        """Find the atoms of all tensors that a node returns, or of a weight."""
        if isinstance(source, Weight):
            return atoms_in(self.weights[source.name])
        return self._carried.get(source, frozenset())

    @cached_property
    def operands(self) -> Mapping[fx.Node, tuple[Site, ...]]:
        """For each call, the dimensions of the weights that it reads itself (by get_attr, or as a module)."""
        out: dict[fx.Node, tuple[Site, ...]] = {}
        within: dict[str, list[str]] = defaultdict(list)  # module -> weights in it
        for name in self.weights:
            for path in modules_around(name):
                within[path].append(name)
        for node in self.axes:
            if node.op in ("placeholder", "get_attr", "output") or not self.axes[node]:
                continue  # (what gives no tensor reads a weight's dtype, device or shape)
            names = [str(n.target) for n in node.all_input_nodes if n.op == "get_attr"]
            if node.op == "call_module":
                names += within[str(node.target)]
            read = (Site(n, d) for n in names if n in self.weights for d in range(len(self.weights[n])))
            out[node] = tuple(read)
        return out

    @cached_property
    def _carried(self) -> dict[fx.Node, frozenset[Atom]]:
        return {node: atoms_in(itertools.chain(*values)) for node, values in self.axes.items()}


def type_graph(
    captured: Captured, rules: RuleSet, tensors: Mapping[str, Tensor], *, outputs: Outputs = "keep"
) -> TypedGraph:
    """Infer the axes of a canonical graph; `tensors` are the model's, by all names that it has for them."""
    found = infer(captured, rules, outputs=outputs)
    resolve = found.solver.resolve
    names = _names_in_graph(tensors, captured.module, found)
    counts = counts_of(found, lambda node: _number(node, captured.module, {*names.values()}))
    return TypedGraph(
        captured=captured,
        rules=rules,
        outputs=outputs,
        names=names,
        axes={node: tuple(found.axes_of(node)) for node in found.values},
        weights={name: tuple(map(resolve, axes)) for name, axes in found.weights.items()},
        steps={node: _resolved(step, found) for node, step in found.steps.items()},
        missing={op: tuple(nodes) for op, nodes in found.missing.items()},
        reasons=found.solver.reasons(),
        counts=counts,
    )


def atoms_in(axes: Iterable[Axis]) -> frozenset[Atom]:
    """Return the atoms of several axes together."""
    found: set[Atom] = set()
    for axis in axes:
        if isinstance(axis, Atom):
            found.add(axis)
        else:
            found |= _atoms(axis)
    return frozenset(found)


@lru_cache(maxsize=1 << 16)
def _atoms(axis: Axis) -> frozenset[Atom]:
    return frozenset(atoms_of(axis))


def _resolved(step: Step, found: Inference) -> Step:
    resolve, flow = found.solver.resolve, step.flow
    resolved = Flow(
        out=flow.out,
        same=[(resolve(a), resolve(b)) for a, b in flow.same],
        frozen=[(resolve(axis), why) for axis, why in flow.frozen],
        sizes={argument: map_axes(spelled, resolve) for argument, spelled in flow.sizes.items()},
        replacement=flow.replacement,
        reduced=[resolve(axis) for axis in flow.reduced],
        macs=[tuple(map(resolve, axes)) for axes in flow.macs],
        select_result=flow.select_result,
        linear=flow.linear or (step.rule.linear if step.rule is not None else ""),
        rotates=[resolve(axis) for axis in flow.rotates],
        centred=[resolve(axis) for axis in flow.centred],
    )
    return replace(step, flow=resolved)


def _number(node: fx.Node, module: fx.GraphModule, state: Collection[str]) -> float | None:
    """Return the number that a constant of the capture holds; none of the model's own state is one."""
    if node.op != "get_attr" or str(node.target) in state:
        return None
    tensor = tensor_at(module, str(node.target))
    return tensor.item() if tensor.numel() == 1 and not tensor.is_meta and not tensor.is_complex() else None


def _names_in_graph(
    tensors: Mapping[str, Tensor], module: fx.GraphModule, found: Inference
) -> dict[str, str]:
    """Map every name that a model has for a tensor to the name under which the graph uses it."""
    used: dict[int, str] = {}
    for name, tensor in named_tensors(module):
        if name in found.weights:
            used.setdefault(id(tensor), name)
    return {name: used[id(tensor)] for name, tensor in tensors.items() if id(tensor) in used}
