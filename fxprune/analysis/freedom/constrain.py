"""Walk a typed graph and couple positions as the laws of its ops say."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor, fx

from fxprune.analysis.freedom.coupling import Coupling
from fxprune.analysis.freedom.equation import Equation, equation_of
from fxprune.analysis.freedom.positions import Operand, Position, Tensors, times_in
from fxprune.analysis.freedom.regions import Freedom
from fxprune.analysis.infer import Step
from fxprune.analysis.typed_graph import TypedGraph, atoms_in
from fxprune.errors import RuleError
from fxprune.graph.nests import leaves
from fxprune.graph.tensors import is_float, tensor_at
from fxprune.rules.axes import Atom, Axis, Reason
from fxprune.rules.laws import LAYOUT

__all__ = ["Constraints", "Multiplied", "constraints_of"]


@dataclass(frozen=True)
class Multiplied:
    """Two positions that are multiplied element by element, and the position of the result."""

    left: Position
    right: Position
    out: Position
    reason: Reason


@dataclass(frozen=True)
class Constraints:
    """Positions of the atoms that may shrink, coupled; and products that wait for what becomes of them."""

    graph: TypedGraph
    live: frozenset[Atom]
    tensors: Tensors
    coupling: Coupling = field(default_factory=Coupling)
    products: list[Multiplied] = field(default_factory=list)


def constraints_of(graph: TypedGraph, live: frozenset[Atom]) -> Constraints:
    """Couple every position of some atoms by what the ops of a graph say."""
    found = Constraints(graph, live, Tensors(graph))
    outputs = [node for node in graph.module.graph.nodes if node.op == "output"]  # they have no axes
    for node in (*graph.axes, *outputs):
        _Call(found, node).run()
    return found


class _Call:
    """One node of the graph: what it says of the positions that it reads and makes."""

    def __init__(self, found: Constraints, node: fx.Node) -> None:
        self.found, self.node, self.coupling = found, node, found.coupling
        self.step: Step | None = found.graph.steps.get(node)
        self.reason = Reason(
            self.step.call.op if self.step else str(node.op), node.name, node.meta.get("where")
        )

    def run(self) -> None:
        node = self.node
        if node.op in ("placeholder", "get_attr"):
            return
        if node.op == "output":
            given = [t for n in node.all_input_nodes for t in self.found.tensors.value(n)]
            return self._limit_all(given, Freedom.PERMUTATION, Reason("reaches the output", node.name))
        out = self.found.tensors.value(node)
        if not out:
            return
        if self.step is None:
            return self._forwarded(out)
        read = self.found.tensors.read(self.step)
        atoms = atoms_in(axis for t in (*read, *out) for axis in t.axes) & self.found.live
        if not atoms:
            return
        choices = self.found.tensors.parts([*read, *out])
        law = self.step.flow.linear
        if choices is None or not law or (law != LAYOUT and len(out) > 1):
            return self._limit_all([*read, *out], Freedom.PERMUTATION, self.reason)
        ordered = sorted(atoms, key=lambda a: a.serial)
        equation = None
        if law != LAYOUT:
            equation = self._read(law, read, out[0])
            if equation is None:
                return self._limit_all([*read, *out], Freedom.PERMUTATION, self.reason)
        picks = self.found.tensors.picks.get(node, ())
        for choice in choices:
            made = [
                t
                for i, t in enumerate(out)
                if all(choice.get(a, 0) == (i if k is None else k) for a, k in picks if a in choice)
            ]
            for a in ordered:
                if equation is None:
                    self._layout(a, read, made, choice)
                else:
                    self._equation(a, equation, read, out[0], choice)
        self._norms(read)

    def _read(self, law: str, read: Sequence[Operand], out: Operand) -> Equation | None:
        """Read an equation; one that does not fit an odd call says nothing, unless a user wrote it."""
        try:
            return equation_of(law, tuple(len(t.axes) for t in read), len(out.axes))
        except ValueError as error:
            rule = self.step.rule if self.step else None
            if rule is not None and rule.taught:
                raise RuleError(
                    f"the law that you taught for {rule.op!r} does not fit {self.reason}: {error}"
                ) from error
            return None

    def _runs(self, operand: Operand, dim: int, a: Atom, choice: Mapping[Atom, int]) -> list[Position]:
        """Return the positions of an atom in one dimension, one for each of its runs."""
        found = []
        for run in range(times_in(operand.axes[dim], a)):
            part = self.found.tensors.part(operand, dim, a, run, choice)
            found.append(self._position(operand, Position(operand.key, dim, a, part, run)))
        return found

    def _position(self, operand: Operand, position: Position) -> Position:
        dim = position.dim
        if self.coupling.add(position, operand.axes[dim]) and isinstance(operand.key, str):
            known = self.coupling.of(position)
            known.weights.append(position)
            graph = self.found.graph
            if not is_float(tensor_at(graph.module, operand.key)):
                known.limit(Freedom.PERMUTATION, Reason(f"{operand.key} holds whole numbers"))
            if operand.key not in graph.names.values():
                known.limit(Freedom.PERMUTATION, Reason("a constant that the model's code makes"))
        return position

    def _positions(self, operand: Operand, a: Atom, choice: Mapping[Atom, int]) -> list[Position]:
        return [p for dim in operand.dims(a) for p in self._runs(operand, dim, a, choice)]

    def _limit(
        self, where: Iterable[Position], freedom: Freedom, why: Reason, *, centred: bool = False
    ) -> None:
        for position in where:
            self.coupling.of(position).limit(freedom, why, centred=centred)

    def _limit_all(self, operands: Sequence[Operand], freedom: Freedom, why: Reason) -> None:
        """Limit all that an op touches."""
        for operand in operands:
            for a in atoms_in(operand.axes) & self.found.live:
                for choice in self.found.tensors.parts([operand]) or ({},):
                    self._limit(self._positions(operand, a, choice), freedom, why)

    def _forwarded(self, out: Sequence[Operand]) -> None:
        """Couple what a container holds, or what is taken out of it, with what it was."""
        sources = [n for n in self.node.all_input_nodes]
        given = [
            (v, t) for n in sources for v, t in zip(_tensors(n), self.found.tensors.value(n), strict=False)
        ]
        for value, made in zip(_tensors(self.node), out, strict=False):
            same = [t for v, t in given if v is value]
            for choice in self.found.tensors.parts([made]) or ({},):
                for a in atoms_in(made.axes) & self.found.live:
                    positions = self._positions(made, a, choice)
                    if not same:
                        self._limit(positions, Freedom.PERMUTATION, self.reason)
                    for t in same:
                        for p, q in zip(positions, self._positions(t, a, choice), strict=True):
                            self.coupling.join(p, q, self.reason)
        if not any(v is value for v, _ in given for value in _tensors(self.node)):
            self._limit_all([t for _, t in given], Freedom.PERMUTATION, self.reason)

    def _layout(
        self, a: Atom, read: Sequence[Operand], made: Sequence[Operand], choice: Mapping[Atom, int]
    ) -> None:
        before = [p for t in read for p in self._positions(t, a, choice)]
        after = [p for t in made for p in self._positions(t, a, choice)]
        in_order = len(before) == len(after) and all(len(t.dims(a)) <= 1 for t in (*read, *made))
        # In order, as parts of a sum are joined, or cut.
        for p, q in zip(before, after, strict=True) if in_order else ():
            self.coupling.join(p, q, self.reason)
        for p in () if in_order else (*before[1:], *after):
            self.coupling.join((before or after)[0], p, self.reason)
        if after and not before:  # copies of one element
            self._limit(after, Freedom.ROTATION, self.reason, centred=True)
        if before and made and not after:
            self._limit(before, Freedom.PERMUTATION, self.reason)

    def _equation(
        self, a: Atom, law: Equation, read: Sequence[Operand], out: Operand, choice: Mapping[Atom, int]
    ) -> None:
        """Couple the positions of one atom, name by name."""
        made: dict[str, list[list[Position]]] = defaultdict(list)
        for dim in out.dims(a):
            made[law.out[dim]].append(self._runs(out, dim, a, choice))
        for factors in law.terms:
            given: dict[str, list[list[Position]]] = defaultdict(list)
            for place, names in factors:
                for dim in read[place].dims(a):
                    given[names[dim]].append(self._runs(read[place], dim, a, choice))
            for name in dict.fromkeys([*given, *made]):
                everything = [*given[name], *made[name]]
                if name in law.apart or len({len(runs) for runs in everything}) > 1:
                    self._limit([p for runs in everything for p in runs], Freedom.PERMUTATION, self.reason)
                    continue
                for run in range(len(everything[0]) if everything else 0):
                    self._named([runs[run] for runs in given[name]], [runs[run] for runs in made[name]])

    def _named(self, given: list[Position], made: list[Position]) -> None:
        """Couple what one name of an equation stands for."""
        if len(made) > 1 or len(given) > 2:
            return self._limit([*given, *made], Freedom.PERMUTATION, self.reason)
        if not given:  # the same for every element of the result
            return self._limit(made, Freedom.ROTATION, self.reason, centred=True)
        if len(given) == 1 and made:
            return self.coupling.join(given[0], made[0], self.reason)
        if len(given) == 1:
            self.coupling.of(given[0]).sums.append(self.reason)
            return None
        if not made:
            for position in given:
                self.coupling.of(position).touched = True
            return self.coupling.join(given[0], given[1], self.reason, opposite=True)
        for position in given:
            self.coupling.of(position).products += 1
        self.found.products.append(Multiplied(given[0], given[1], made[0], self.reason))
        return None

    def _norms(self, read: Sequence[Operand]) -> None:
        """Limit the axes over which an op takes a norm."""
        assert self.step is not None
        for axes, centred in ((self.step.flow.rotates, False), (self.step.flow.centred, True)):
            self._rotations(read[:1], axes, centred)

    def _rotations(self, read: Sequence[Operand], axes: Sequence[Axis], centred: bool) -> None:
        for operand in read:
            for a in atoms_in(axes) & self.found.live:
                for choice in self.found.tensors.parts([operand]) or ({},):
                    where = self._positions(operand, a, choice)
                    self._limit(where, Freedom.ROTATION, self.reason, centred=centred)


def _tensors(node: fx.Node) -> list[Tensor]:
    return list(leaves(node.meta.get("val"), Tensor))
