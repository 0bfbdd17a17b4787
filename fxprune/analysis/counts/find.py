"""Find the numbers of a graph that count what a statistic runs over.

    x.sum(-1) / 64          x.norm(dim=-1) * x.shape[-1] ** -0.5        F.normalize(x, dim=-1) * 8.0

Where that axis shrinks, each becomes the number for what is kept.  Which axis a size is read off, and which
axes a tensor was summed over, the typed graph says; a number that is written is held against the sizes of
those.  A number that meets no statistic, or that does not fit one (the scale of an attention), stays.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from torch import Tensor, fx

from fxprune.analysis.counts.formulas import Formula, formulas_of, rank
from fxprune.analysis.counts.ledger import Count, Ledger
from fxprune.analysis.counts.numbers import Factor, factors_of, is_number, number_of, operands_of, root_of
from fxprune.analysis.counts.ties import NOTHING, Pending, State, Tie, added, multiplied
from fxprune.analysis.infer import Inference, Step
from fxprune.graph.nests import leaves
from fxprune.rules.axes import ONE, Atom, Axis, Product, atoms_of
from fxprune.rules.calls import Weight
from fxprune.rules.degrees import CONSTANT, KEEPING, PRODUCTS, QUOTIENTS, SUMS, power_of
from fxprune.rules.laws import LAYOUT
from fxprune.rules.multiples import is_fact

__all__ = ["counts_of"]


def counts_of(found: Inference, constant: Callable[[fx.Node], float | None]) -> dict[fx.Node, list[Count]]:
    """Find what counts in each call of a graph; what may count one axis or another is frozen.

    constant: the number that a node without a place in the model's state holds, if it holds one.
    """
    if all(step.flow.grows is None for step in found.steps.values()):
        return {}
    return _Walk(found, constant).run()


class _Walk:
    """Visits the calls in order, with what is known of each value."""

    def __init__(self, found: Inference, constant: Callable[[fx.Node], float | None]) -> None:
        self.found, self.constant = found, constant
        self.resolve, self.frozen = found.solver.resolve, found.solver.frozen
        self.states: dict[fx.Node, State] = {}
        self.ledger = Ledger(found.solver)

    def run(self) -> dict[fx.Node, list[Count]]:
        for node in self.found.values:
            if (step := self.found.steps.get(node)) is not None:
                state = self._visited(node, step)
            else:  # one of several results
                state = self._of(node.args[0]) if node.op == "call_function" and node.args else NOTHING
            if state is not NOTHING:
                self.states[node] = state
        return self.ledger.counts()

    # ------------------------------------------------------------ what ops make of a tie

    def _visited(self, node: fx.Node, step: Step) -> State:
        op, flow = step.call.plain_op, step.flow
        if flow.grows is not None and flow.reduced:
            return self._statistic(node, step)
        given = [n for n in leaves(step.bound, fx.Node) if isinstance(n.meta.get("val"), Tensor)]
        if not given:
            return NOTHING
        power = power_of(op, step.bound.get("exponent"))
        if power is not None and power and len(given) == 1:
            return self._settled(self._of(given[0]).to_the(power))
        if op == "log" and (tie := self._of(given[0]).tie) is not None:
            return State(logged=tuple(axis for axis, degree in tie.degrees.items() if degree))
        if op in PRODUCTS or op in QUOTIENTS:
            return self._product(node, op in QUOTIENTS)
        if op in SUMS:
            return self._sum(node, step, given)
        law = flow.linear or (step.rule.linear if step.rule is not None else "")
        if op in KEEPING or law == LAYOUT:
            return self._of(given[0])
        return NOTHING

    def _statistic(self, node: fx.Node, step: Step) -> State:
        grows = step.flow.grows
        given = [n for n in leaves(step.bound, fx.Node) if isinstance(n.meta.get("val"), Tensor)]
        own = [n for n in given if not self._is_constant(n)]
        weights = next(leaves(step.bound, Weight), None)
        if grows is None or not own or weights is not None or len({root_of(n) for n in own}) > 1:
            return NOTHING  # a product of two, whose scale is its own
        keeps = grows > 0 or (grows == 0 and not step.flow.centred)  # a multiple of what it is taken of?
        state = self._of(own[0]).to_the(len(own)) if keeps else NOTHING
        reduced = [part for axis in step.flow.reduced for part in self._parts(self.resolve(axis))]
        degrees = dict(state.tie.degrees) if state.tie else {}
        for axis in reduced:
            degrees[axis] = degrees.get(axis, 0.0) + grows
        if not degrees:
            return NOTHING
        rank = own[0].meta["val"].ndim - len(step.flow.reduced)
        alike = len(own) == 1 or node.meta["val"].ndim <= rank  # else of every place with every other
        plain = alike and not self._is_product(own[0], reduced)
        before = state.tie or Tie({})
        tie = replace(before, degrees=degrees, plain=plain and before.plain, direct=True, mixed=before.mixed)
        filled = [p for n in given if n not in own for p in self._filled(n, 1.0)]
        return self._settled(State(tie, (*state.pending, *filled)))

    def _parts(self, axis: Axis) -> list[Axis]:
        """Take an axis apart into what may shrink, and what a number may count alone: `(tokens channels)`."""
        parts = axis.parts if isinstance(axis, Product) else (axis,)
        fixed = [part for part in parts if all(map(self.frozen, atoms_of(part)))]
        live = Product.of(part for part in parts if part not in fixed)
        return [part for part in (*fixed, live) if part != ONE]

    def _product(self, node: fx.Node, divides: bool) -> State:
        ties: list[Tie | None] = []
        pending: list[Pending] = []
        for place, value in operands_of(node):
            sign = -1.0 if divides and place not in (0, "input", "self") else 1.0
            number = self._number(value)
            if number is not None:
                factors = factors_of(number, (node, place))
                pending += [Pending(f, number, (node, place), f.power * sign) for f in factors]
            elif isinstance(value, fx.Node) and self._is_constant(value):
                pending += self._filled(value, sign)
            elif isinstance(value, fx.Node):
                state = self._of(value).to_the(sign)
                ties.append(state.tie)
                pending += state.pending
        return self._settled(State(multiplied(ties), tuple(pending)))

    def _sum(self, node: fx.Node, step: Step, given: list[fx.Node]) -> State:
        if (condition := step.bound.get("condition")) in given:
            given = [n for n in given if n is not condition]
        for axis in {axis for n in given for axis in self._of(n).logged}:
            self._refuse_logarithm(node, axis)
        tie = added(self._of(n).tie for n in given if not self._is_weight(n))
        if tie is None:
            return NOTHING
        for place, value in operands_of(node):
            for factor in factors_of(value, (node, place)) if is_number(value) else ():
                if not tie.mixed:
                    met = Pending(factor, value, (node, place), factor.power)
                    self.ledger.read(met, self._read(factor, tie))
        return State(tie)

    def _refuse_logarithm(self, node: fx.Node, axis: Axis) -> None:
        """Freeze what was summed before a logarithm, where that of its size is added: a mean in disguise."""
        for place, value in operands_of(node):
            number = abs(number_of(value) or 0.0)
            if number and math.isclose(number, math.log(axis.size), rel_tol=1e-7):
                met = Pending(Factor(number, 1.0), value, (node, place), 1.0)
                self.ledger.refuse(met, [Formula(((axis, 1),), 1.0)], "the logarithm of its size is written")

    # ------------------------------------------------------------ numbers that meet a tie

    def _settled(self, state: State) -> State:
        """Take those factors for counts that fit the statistic."""
        tie, left = state.tie, list[Pending]()
        for pending in state.pending:
            after = self._met(tie, pending) if tie is not None else None
            if after is None:
                left.append(pending)
            else:
                tie = after
        return State(tie, tuple(left))

    def _met(self, tie: Tie, pending: Pending) -> Tie | None:
        """Return what a tie becomes if a factor counts what it is over; None if it does not."""
        factor, power = pending.factor, pending.power
        if factor.reads:
            return self._met_read(tie, pending)
        if tie.mixed or not factor.written:  # a number that a call is given
            return None
        found = [
            f for f in formulas_of(factor.written[0].value, tie.times) if tie.admits(f, power, read=False)
        ]
        if not found:
            return None
        first = min(found, key=rank)
        others = [f for f in found if rank(f) == rank(first)]
        if any(self.ledger.live(first) != self.ledger.live(f) for f in others):
            self.ledger.refuse(pending, found, "a number counts it, or another axis of its size")
        self.ledger.write(pending, factor.written[0].place, first)
        return tie.by(first, power)

    def _met_read(self, tie: Tie, pending: Pending) -> Tie | None:
        factor, power = pending.factor, pending.power
        own = self._read(factor, tie)
        if not own:
            return None
        formulas = [*formulas_of(factor.value, tie.times)]
        fitting = [f for f in formulas if tie.admits(f, power, read=True) and own <= f.atoms]
        first = min(fitting, key=rank, default=None)
        if first is None and (formulas or not tie.plain or tie.mixed):
            return None
        if first is None:
            self.ledger.read(pending, own)
            return replace(tie, direct=False)
        self.ledger.read(pending, own)
        self.ledger.write_rest(pending, first, own)
        return tie.by(first, power)

    def _read(self, factor: Factor, tie: Tie) -> set[Atom]:
        """Return the atoms of a tie that a factor reads the sizes of."""
        read = {a for of, d in factor.reads for a in atoms_of(self.found.axes_of(of)[0][d])}
        tied = {a for axis in tie.degrees for a in atoms_of(axis)}
        return read & tied

    # ------------------------------------------------------------ what is known of nodes

    def _of(self, node: object) -> State:
        """Return what is known of a value; a factor of one that is used twice is not only this one's."""
        state = self.states.get(node, NOTHING) if isinstance(node, fx.Node) else NOTHING
        if state.pending and isinstance(node, fx.Node) and sum(not is_fact(u) for u in node.users) > 1:
            return State(state.tie)
        return state

    def _number(self, value: object) -> object:
        """Return an operand that is a number, or a constant tensor that is one; None for others."""
        if is_number(value):
            return value
        return self.constant(root_of(value)) if isinstance(value, fx.Node) else None

    def _is_constant(self, node: fx.Node) -> bool:
        step = self.found.steps.get(root_of(node))
        return step is not None and step.call.plain_op in CONSTANT

    def _filled(self, node: fx.Node, sign: float) -> list[Pending]:
        """Return what a tensor is filled with, if it is used once."""
        made = root_of(node)
        step = self.found.steps[made]
        used_once = all(len(n.users) == 1 for n in (node, made))
        for place, value in operands_of(made, "fill_value") if used_once else ():
            if value is step.bound.get("fill_value") and is_number(value):
                factors = factors_of(value, (made, place))
                return [Pending(f, value, (made, place), f.power * sign) for f in factors]
        return []

    def _is_weight(self, node: fx.Node) -> bool:
        return root_of(node).op == "get_attr"

    def _is_product(self, node: fx.Node, reduced: list[Axis]) -> bool:
        """Is it a product of two tensors along axes: of queries and keys?"""
        step = self.found.steps.get(root_of(node))
        if step is None or step.call.plain_op not in PRODUCTS:
            return False
        over = {a for axis in reduced for a in atoms_of(axis)}
        given = [n for n in leaves(step.bound, fx.Node) if isinstance(n.meta.get("val"), Tensor)]
        along = [n for n in given if over & {a for axis in self.found.axes_of(n)[0] for a in atoms_of(axis)}]
        return len({root_of(n) for n in along}) > 1
