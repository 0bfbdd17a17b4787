"""Follow what weights bring out of contractions to where it is summed up: is it a channel, or tokens?

A channel is summed over where a weight, or another value of the same features, meets it:

    (x @ wv).flatten(-2) @ wo          a factor of what a weight contracts: heads, head dims
    (x @ wq) @ (x @ wk).T              two values that have it: query and key dims
    ((x @ wq) * (x @ wk)).sum(-1)      the same, written otherwise

What is only averaged counts tokens, though a weight made it: the maps of a token learner, the scores that
learned queries give to patches.  So does what reads values (`scores.sigmoid() @ x`, or a layer that works
on each of the read values), even where a weight contracts it together with their channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from torch import fx

from fxprune.analysis.infer import Step
from fxprune.analysis.typed_graph import TypedGraph, atoms_in
from fxprune.graph.nests import leaves
from fxprune.rules.axes import Atom
from fxprune.rules.calls import Weight

__all__ = ["Consumption", "Source"]

Source = fx.Node | Weight
_SOURCES: tuple[type[Source], ...] = (fx.Node, Weight)
# Ops whose results weigh other values, or pick among them.
_SCORES = {"softmax", "_softmax", "softmin", "sigmoid", "hardsigmoid", "gt", "ge", "lt", "le"}
# Ops that pair two values element by element, as a contraction does before it sums.
_PAIRING = {"mul", "sub", "rsub"}


@dataclass(frozen=True)
class _State:
    """What became of an atom up to a node.

    made: a contraction has brought it out; it does not only lie along a parameter that was added.
    scores: the value is a softmax or a sigmoid: it may be what others are read by.
    row: it came out of a product of two values of which one alone has it: `scores @ x`.
    read: the one that has it was scores.
    token: a layer has worked since on each of its elements.
    paired: two values that have it were multiplied or subtracted, element by element.
    """

    made: bool = False
    scores: bool = False
    row: bool = False
    read: bool = False
    token: bool = False
    paired: bool = False

    @staticmethod
    def of(states: Iterable[_State]) -> _State:
        """Return what an op of several operands is given."""
        given = list(states)
        return _State(
            made=any(s.made for s in given),
            scores=bool(given) and all(s.scores for s in given),
            row=any(s.row for s in given),
            read=any(s.read for s in given),
            token=any(s.token for s in given),
            paired=any(s.paired for s in given),
        )


@dataclass(frozen=True)
class Consumption:
    """One walk over a graph.

    candidates: atoms that weights bring out of contractions.
    alone: those of them that no weight brings out together with others, as head dims are with heads.
    queries: those of them that one parameter alone brings out, and no layer: `x @ queries.T`.
    parameters: the parameters that a value is computed from; none if data has a part in it.
    channels: what the walk finds: candidates that are summed over as channels are.
    averaged: those that are summed over, or contracted, as tokens are.
    read_by: candidates by which values are read, as by queries.
    """

    graph: TypedGraph
    candidates: frozenset[Atom]
    alone: frozenset[Atom]
    queries: frozenset[Atom]
    parameters: Callable[[Source], frozenset[str]]
    channels: set[Atom] = field(default_factory=set)
    averaged: set[Atom] = field(default_factory=set)
    read_by: set[Atom] = field(default_factory=set)
    states: dict[fx.Node, dict[Atom, _State]] = field(default_factory=dict)

    def run(self) -> Consumption:
        """Walk the graph once, fill the sets that it finds, and return itself."""
        for node in self.graph.axes:
            out = self.graph.carried(node) & self.candidates
            states = self._after(node, out)
            step = self.graph.steps.get(node)
            new = _State(made=step is not None and bool(step.flow.macs))
            self.states[node] = {a: states.get(a, new) for a in out}
        return self

    def _after(self, node: fx.Node, out: frozenset[Atom]) -> dict[Atom, _State]:
        """Return the states behind a node of the atoms that reach it; those that end in it are judged."""
        given = [n for n in node.all_input_nodes if self.states.get(n)]
        step = self.graph.steps.get(node)
        if not given or node.op == "output":
            return {}
        if step is None or step.rule is None:
            return {a: _State.of(self._states(given, a)) for a in out}
        sources = list(leaves(step.bound, _SOURCES))
        reaching = frozenset(a for n in given for a in self.states[n])
        for a in reaching - out:
            (self.channels if self._is_channel(a, step, sources) else self.averaged).add(a)
        return {a: self._passed(a, step, sources) for a in reaching & out}

    def _is_channel(self, a: Atom, step: Step, sources: list[Source]) -> bool:
        """Return whether the op sums over the atom as one does over channels."""
        if a not in atoms_in(step.flow.reduced):
            return True  # its rule does not say what becomes of it
        having = [s for s in sources if a in self.graph.carried(s)]
        states = self._states(having, a)
        if any(s.token for s in states):
            return False
        if step.flow.macs and any(map(self.parameters, having)):
            return not any(s.read for s in states)
        if a in self.queries and any(s.read for s in states):
            return False
        return sum(s.made for s in states) > 1 or any(s.paired for s in states)

    def _passed(self, a: Atom, step: Step, sources: list[Source]) -> _State:
        having = [s for s in sources if a in self.graph.carried(s)]
        states = self._states(having, a)
        if not states:
            return _State(made=bool(step.flow.macs))
        state = _State.of(states)
        op = step.call.plain_op
        if op in _PAIRING and sum(s.made for s in states) > 1 and not state.row:
            state = replace(state, paired=True)
        if op in _SCORES:
            return replace(state, scores=True)
        if step.flow.macs and any(self.parameters(s) for s in sources if self._is_summed(s, step)):
            works = state.row and not any(map(self.parameters, having))
            token = works and (state.read or a in self.alone)
            return replace(state, scores=False, token=state.token or token)
        makers = [s for s in having if any(t.made for t in self._states([s], a))]
        if len(makers) == 1 and self._is_product(step, sources, makers[0]):
            read = state.scores and not state.row  # (heads, and channels that attend to channels, are rows)
            if read:
                self.read_by.add(a)
            read = read or (not state.row and a in self.queries & self.alone)  # whatever scores they are
            return replace(state, scores=False, row=True, read=state.read or read, paired=False)
        return state

    def _is_product(self, step: Step, sources: list[Source], having: Source) -> bool:
        """Return whether an op multiplies one value by another that has channels of its own."""
        if step.flow.macs:
            return True
        others = [self.graph.carried(s) for s in sources if s is not having]
        own = frozenset[Atom]().union(*others) - self.graph.carried(having)
        multiplies = step.call.plain_op == "mul"
        return multiplies and any(self.graph.frozen(a) is None for a in own)

    def _is_summed(self, source: Source, step: Step) -> bool:
        return bool(self.graph.carried(source) & atoms_in(step.flow.reduced))

    def _states(self, sources: Iterable[Source], a: Atom) -> list[_State]:
        """Return the states of the values that have an atom; parameters have none."""
        nodes = [s for s in sources if isinstance(s, fx.Node) and not self.parameters(s)]
        return [self.states[n][a] for n in nodes if a in self.states.get(n, {})]
