"""Tell tokens (queries, latents, registers) from channels, where both lie along parameters.

A channel is what a weight contracts, or brings out of a contraction to be summed over as channels are
(`consumption`).  An axis that parameters only lie along counts tokens, however it is read afterwards:
averaged, attended to, flattened into a head.  Weights may also mix tokens; then the axis that lies outside
a channel in a parameter that enters as data (`queries[1, n, c]`), or by which values are read
(`(queries @ x.T).softmax(-1) @ x`), and that no weight makes from anything else, is the tokens'.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from torch import fx

from fxprune.analysis.consumption import Consumption, Source
from fxprune.analysis.infer import Step
from fxprune.analysis.typed_graph import TypedGraph, atoms_in
from fxprune.graph.nests import leaves
from fxprune.rules.axes import Atom, Axis, Product, Sum, atoms_of
from fxprune.rules.calls import Weight

__all__ = ["is_channel"]

# Ops that take only a dtype and a device from all but their first tensor.
_LENDING = {"to", "type_as", "new_zeros", "new_ones", "new_empty", "new_full"}
_ATTENTION = "scaled_dot_product_attention"
_SOURCES: tuple[type[Source], ...] = (fx.Node, Weight)


def is_channel(graph: TypedGraph) -> set[Atom]:
    """Return the atoms that some weight contracts, or brings out of a contraction, as features."""
    return _Walk(graph).run()


@dataclass(frozen=True)
class _Brought:
    """A contraction in which a weight brings out an atom.

    weights: the parameters that the weight is computed from.
    before: the atoms that values before it carry.
    with_others: the weight brings out other atoms as well.
    """

    weights: frozenset[str]
    before: frozenset[Atom]
    with_others: bool


@dataclass(frozen=True)
class _Walk:
    """One walk over the graph: which weights contract what, and which parameters enter as data."""

    graph: TypedGraph
    made_of: dict[fx.Node, frozenset[str]] = field(default_factory=dict)  # of parameters alone: which
    laid_out: dict[fx.Node, frozenset[str]] = field(default_factory=dict)  # those it is, but for layout
    before: dict[fx.Node, frozenset[Atom]] = field(default_factory=dict)  # carried by it or before it
    contracted: set[Atom] = field(default_factory=set)
    brought: dict[Atom, list[_Brought]] = field(default_factory=lambda: defaultdict(list))
    products: dict[Atom, list[_Brought]] = field(default_factory=lambda: defaultdict(list))  # by no layer
    as_data: set[str] = field(default_factory=set)  # parameters that are an op's input, not its weight

    def run(self) -> set[Atom]:
        for node in self.graph.axes:
            self._visit(node)
        consumption = self._consumption()
        for a in consumption.read_by & consumption.queries:  # x @ queries.T is no layer: it is attention
            self.as_data.update(name for e in self.products[a] for name in e.weights)
        tokens = consumption.averaged - consumption.channels - self.contracted
        found = (self.contracted | set(self.brought)) - tokens
        outside = self._outside_of(found)
        return {a for a in found if a not in outside or self._made_from_others(a, outside[a])}

    def _consumption(self) -> Consumption:
        alone = {a for a, events in self.brought.items() if not any(e.with_others for e in events)}
        queries = {a for a in self.products if self._is_made_once(a)}
        candidates = frozenset(self.brought)
        found = Consumption(self.graph, candidates, frozenset(alone), frozenset(queries), self._parameters)
        return found.run()

    def _is_made_once(self, a: Atom) -> bool:
        """Return whether one parameter alone produces it; layers may mix it."""
        names = [e.weights for e in self.brought[a] if a not in e.before]
        return len(frozenset[str]().union(*names)) == 1

    def _made_from_others(self, a: Atom, entering: set[str]) -> bool:
        return any(a not in e.before and not (e.weights & entering) for e in self.brought.get(a, ()))

    def _outside_of(self, channels: set[Atom]) -> dict[Atom, set[str]]:
        """Return atoms outside a channel in a parameter that enters as data, and these parameters."""
        found: dict[Atom, set[str]] = defaultdict(set)
        for name in self.as_data:
            for a, inner in _nested(self.graph.weights.get(name, ())):
                if inner & channels - {a}:
                    found[a].add(name)
        return found

    def _visit(self, node: fx.Node) -> None:
        axes = self.graph.axes[node]
        own = self.graph.carried(node)
        step = self.graph.steps.get(node)
        given = node.all_input_nodes[:1] if step and step.call.op in _LENDING else node.all_input_nodes
        self.before[node] = own.union(*(self.before.get(n, frozenset()) for n in given))
        if node.op == "get_attr":
            self.made_of[node] = self.laid_out[node] = frozenset([str(node.target)])
            return
        if node.op == "placeholder" or not axes:
            return
        if step is None or step.rule is None:  # picked from a tuple, an output's own class
            self._only_laid_out(node, [n for n in node.all_input_nodes if self.graph.axes.get(n)])
            return
        if step.flow.macs and step.flow.reduced and not step.call.op.endswith(_ATTENTION):
            self._contraction(node, step)
        else:
            self._other(node, step)

    # ------------------------------------------------------------ what each kind of node tells

    def _contraction(self, node: fx.Node, step: Step) -> None:
        bound = step.bound
        sums = step.flow.reduced
        summed = atoms_in(sums)
        weight = bound.get("weight")
        layer = isinstance(weight, (fx.Node, Weight))
        factors = [s for s in list(leaves(bound, _SOURCES)) if self.graph.carried(s) & summed]
        weights = [s for s in factors if self._parameters(s) and (s is weight or not layer)]
        for source in weights:
            others = frozenset[Atom]().union(*(self.graph.carried(s) for s in factors if s is not source))
            out = self.graph.carried(source) - summed - others
            event = _Brought(self._parameters(source), self._all_before(factors, source), len(out) > 1)
            for a in out:
                self.brought[a].append(event)
                if not layer:
                    self.products[a].append(event)
        if weights:
            self.contracted.update(a for axis in sums for a in _alone(axis))
        # What goes into a layer is data to it; so is the left factor of a product of parameters.
        inputs = [s for s in factors if s is not weight] if layer else factors[:1] * (len(weights) > 1)
        self.as_data.update(name for s in inputs for name in self._laid_out(s))
        self._made(node, step)

    def _other(self, node: fx.Node, step: Step) -> None:
        bound = step.bound
        op = step.call.plain_op
        if op == "embedding":
            table = bound["weight"]
            assert isinstance(table, _SOURCES)
            for a in self.graph.carried(table):
                self.brought[a].append(_Brought(self._parameters(table), frozenset(), True))
            self._made(node, step)
            return
        tensors = list(leaves(bound, _SOURCES))
        if op in _LENDING:
            tensors = tensors[:1]
        if op.endswith(_ATTENTION) and any(map(self._parameters, tensors)):
            self.contracted.update(atoms_in(step.flow.reduced))
        self._only_laid_out(node, tensors)

    def _only_laid_out(self, node: fx.Node, sources: Sequence[Source]) -> None:
        """Note what a value is made of, where an op only lays out its operands."""
        if sources and all(map(self._parameters, sources)):
            self.made_of[node] = frozenset().union(*map(self._parameters, sources))
            self.laid_out[node] = frozenset().union(*map(self._laid_out, sources))
        else:
            self.as_data.update(name for s in sources for name in self._laid_out(s))

    def _made(self, node: fx.Node, step: Step) -> None:
        sources = list(leaves([step.call.args, step.call.kwargs], _SOURCES))
        if sources and all(map(self._parameters, sources)):
            self.made_of[node] = frozenset().union(*map(self._parameters, sources))

    # ------------------------------------------------------------ what a source is

    def _parameters(self, source: Source) -> frozenset[str]:
        """Return the parameters that it is computed from; none if data has a part in it."""
        if isinstance(source, Weight):
            return frozenset([source.name])
        return self.made_of.get(source, frozenset())

    def _laid_out(self, source: Source) -> frozenset[str]:
        if isinstance(source, Weight):
            return frozenset([source.name])
        return self.laid_out.get(source, frozenset())

    def _all_before(self, factors: list[Source], but: Source) -> frozenset[Atom]:
        nodes = [s for s in factors if isinstance(s, fx.Node) and s is not but]
        return frozenset[Atom]().union(*(self.before[n] for n in nodes))


def _alone(axis: Axis) -> Iterator[Atom]:
    """Yield the atoms that a sum over an axis runs over on their own, not as a factor of a flattened axis."""
    if isinstance(axis, Atom):
        yield axis
    elif isinstance(axis, Sum):
        for part in axis.parts:
            yield from _alone(part)


def _nested(axes: Iterable[Axis]) -> Iterator[tuple[Atom, set[Atom]]]:
    """Yield each atom of a tensor with those that lie inside it: later dimensions, later factors."""
    inner: set[Atom] = set()
    for axis in reversed(tuple(axes)):
        yield from _inside(axis, inner)
        inner |= set(atoms_of(axis))


def _inside(axis: Axis, inner: set[Atom]) -> Iterator[tuple[Atom, set[Atom]]]:
    if isinstance(axis, Atom):
        yield axis, set(inner)
    elif isinstance(axis, Product):
        inner = set(inner)
        for part in reversed(axis.parts):
            yield from _inside(part, inner)
            inner |= set(atoms_of(part))
    else:
        for part in axis.parts:
            yield from _inside(part, inner)
