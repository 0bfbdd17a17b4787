"""Record which numbers count what, while a graph is walked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from torch import fx

from fxprune.analysis.counts.formulas import Formula
from fxprune.analysis.counts.numbers import Place
from fxprune.analysis.counts.ties import Pending
from fxprune.analysis.solver import Solver
from fxprune.rules.axes import Atom, Axis, Reason, atoms_of

__all__ = ["Count", "Ledger"]


@dataclass(frozen=True)
class Count:
    """An argument that is a number which counts, or is computed of such.

    formulas: the numbers written in it that follow what is kept.
    atoms: of the axes that it counts: their sizes that it reads are those that are kept.
    """

    place: int | str
    number: object
    formulas: Mapping[Place, Formula]
    atoms: frozenset[Atom]

    def written(self, place: Place, size: Callable[[Axis], int]) -> float | None:
        """Return the number that stands at a place for other sizes of the axes; None where it stays."""
        formula = self.formulas.get(place)
        return None if formula is None else formula.at(size)

    def counts(self, axis: Axis) -> bool:
        """Return whether an axis is one of those that it counts."""
        return not self.atoms.isdisjoint(atoms_of(axis))


@dataclass
class _Draft:
    """A count in the making; not frozen: every factor of its number adds to it."""

    number: object
    formulas: dict[Place, Formula] = field(default_factory=dict)
    atoms: set[Atom] = field(default_factory=set)


class Ledger:
    """Holds the numbers that were found to count something that may shrink."""

    def __init__(self, solver: Solver) -> None:
        self.solver = solver
        self.drafts: dict[Place, _Draft] = {}

    def counts(self) -> dict[fx.Node, list[Count]]:
        """Return what was found, by the calls that have such an argument."""
        found: dict[fx.Node, list[Count]] = {}
        for (node, place), draft in self.drafts.items():
            if draft.atoms:
                count = Count(place, draft.number, draft.formulas, frozenset(draft.atoms))
                found.setdefault(node, []).append(count)
        return found

    def live(self, formula: Formula) -> set[Atom]:
        """Return what a number counts that may shrink."""
        return self._live(formula.atoms)

    def read(self, pending: Pending, atoms: Iterable[Atom]) -> None:
        """Let a number that reads sizes read those of what is kept."""
        if live := self._live(atoms):
            self._draft(pending).atoms.update(live)

    def write(self, pending: Pending, place: Place, formula: Formula) -> None:
        """Let a number that is written somewhere follow what is kept."""
        if live := self.live(formula):
            draft = self._draft(pending)
            draft.formulas[place] = formula
            draft.atoms |= live

    def write_rest(self, pending: Pending, formula: Formula, read: set[Atom]) -> None:
        """Let a number beside sizes that are read follow, where it counts the rest: `x.shape[1] * 64 - 1`."""
        rest = tuple((axis, k) for axis, k in formula.axes if read.isdisjoint(atoms_of(axis)))
        count = Formula(rest, 1.0, whole=True)
        if not self.live(count):
            return
        written = [w for w in pending.factor.written if w.value == count.at(lambda axis: axis.size)]
        if len(written) == 1:
            self.write(pending, written[0].place, count)
        else:
            self.refuse(pending, [count], "how a number counts it is not understood")

    def refuse(self, pending: Pending, formulas: Iterable[Formula], why: str) -> None:
        """Freeze what a number may count."""
        node = pending.place[0]
        reason = Reason(why, node.name, node.meta.get("where"))
        for formula in formulas:
            for axis, _ in formula.axes:
                self.solver.freeze(axis, reason)

    def _live(self, atoms: Iterable[Atom]) -> set[Atom]:
        return {a for a in atoms if self.solver.frozen(a) is None}

    def _draft(self, pending: Pending) -> _Draft:
        return self.drafts.setdefault(pending.place, _Draft(pending.number))
