"""Edit the sizes that a model's code reads until it computes what the pruned graph does."""

from __future__ import annotations

import itertools
import math
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from torch import Tensor, nn

from fxprune.compiler.native.combinations import COMBINATIONS, in_order
from fxprune.compiler.native.proposals import Options, Proposals
from fxprune.compiler.native.reads import Reads, reads_noted
from fxprune.compiler.native.scopes import Scope
from fxprune.compiler.native.spellings import SpelledSlot, Spellings
from fxprune.compiler.native.watch import Expected, Fault, fault_in
from fxprune.graph.example import Example
from fxprune.graph.tensors import is_inside
from fxprune.result.own_code import Slot

__all__ = ["Search"]

T = TypeVar("T")

TRIES = 256  # combinations of numbers for one module
TRIES_AROUND = 64  # of those of its caller, and of what modules around it say
RUNS = 2048  # of modules, in all


@dataclass
class Search:
    """Edits of `root`, a float64 model on sliced weights, in place; not frozen, since it counts the runs.

    edits: what they are by now.
    reads: what any code has looked at.
    spellings: the sizes in the code itself, once they are asked for.
    passed_on: what the last choice wrote in modules like the one that it was made for, and what stood there.
    next_best: a choice after which a module's own code goes further, where none makes it right.
    shorter: modules whose code calls a branch that is gone: no number keeps it from that.
    """

    root: nn.Module
    proposals: Proposals
    edits: dict[Slot, int] = field(default_factory=dict)
    reads: Reads = field(default_factory=Reads)
    runs: int = 0
    spellings: Spellings | None = None
    passed_on: list[tuple[Slot, int]] = field(default_factory=list)
    next_best: tuple[str, Options, tuple[int, ...]] | None = None
    shorter: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        for slot, value in self.proposals.first():
            self._set(slot, value)

    @property
    def spelled(self) -> bool:
        """Were sizes in code edited, or so many tried that it ended early?  Else they made no difference."""
        adopted = any(isinstance(slot, SpelledSlot) for slot in self.edits)
        return adopted or (self.spellings is not None and self.runs > RUNS)

    def set_back(self, model: nn.Module, expected: Expected) -> None:
        """Let numbers be the original's that code reads, that may be no widths, and that make no difference.

        A bound on tokens may be as large as a width: what runs passes neither the old one nor the new one.
        """
        unsure: dict[object, list[tuple[Slot, int, int]]] = defaultdict(list)
        for slot, new in self._still_own(self.proposals.first()):
            old = slot.read(model)
            is_new = self.edits.get(slot) == new != old
            if is_new and self.reads.has(slot) and not self.proposals.is_told(slot, old):
                unsure[self.proposals.classes[slot.path], slot.keys].append((slot, old, new))
        for alike in unsure.values():
            for slot, old, _ in alike:
                self._set(slot, old)
            if self._run(self.root, "", expected.example, expected, Counter()) is not None:
                for slot, _, new in alike:
                    self._set(slot, new)

    def fault(self, expected: Expected) -> Fault | None:
        """Find the first module that no edit mends; None: the model equals the graph."""
        reached = (-1, 0)
        with reads_noted(self.root, self.reads):
            while True:
                fault = self._run(self.root, "", expected.example, expected, Counter())
                if fault is None:
                    return None
                if fault.progress <= reached and self.passed_on:
                    self._take_back()  # what is right for one module is wrong for another that is like it
                    continue
                if fault.progress <= reached or not self._mend(fault, expected):
                    return fault
                reached = fault.progress

    def _run(
        self,
        module: nn.Module,
        path: str,
        example: Example,
        expected: Expected,
        calls: Counter[str],
        draws: Tensor | None = None,
    ) -> Fault | None:
        self.runs += 1
        return fault_in(module, path, example, expected, calls, draws, self.root)

    def _set(self, slot: Slot, value: int) -> None:
        slot.write(self.root, value)
        self.edits[slot] = value

    def _mend(self, fault: Fault, expected: Expected) -> bool:
        """Try other numbers in the module at fault, then in the one that calls it with what it gets.

        Returns whether some work.
        """
        if is_inside(fault.path, self.shorter):
            return False
        scopes = [(fault, Scope(fault.path))]
        if fault.caller is not None and fault.path:
            scopes.append((fault.caller, Scope(fault.caller.path, less=fault.path)))
        scopes += [(of, replace(scope, wide=True)) for of, scope in scopes]
        if self.spellings is not None:
            scopes += [(of, replace(scope, spelled=True)) for of, scope in [*scopes]]
        self.next_best = None
        if any(self._mend_within(of, scope, expected) for of, scope in scopes):
            return True
        if self.next_best is None or self.spellings is None:
            return False
        self._adopt(*self.next_best)
        return True

    def _mend_within(self, fault: Fault, scope: Scope, expected: Expected) -> bool:
        """Keep other numbers that work, if there are any, in the module's likes as well."""
        found = self._working_choice(fault, scope, expected)
        if found is not None:
            self._adopt(fault.path, *found)
        return found is not None

    def _working_choice(
        self, fault: Fault, scope: Scope, expected: Expected
    ) -> tuple[Options, tuple[int, ...]] | None:
        """Find numbers with which the code leaves the module as it should; or else, enters or leaves more.

        Such after which the module's own code alone goes further are `next_best`.  Afterwards the module has
        the numbers that it had.
        """
        module, example = self.root.get_submodule(fault.path), Example(fault.args, fault.kwargs)
        options: Options = []
        further: tuple[Options, tuple[int, ...]] | None = None
        reached: tuple[int, int] | None = None  # how far the code goes with what stands there now
        modules = sys.maxsize
        tries = TRIES_AROUND if scope.wide or scope.less is not None else TRIES
        while len(options) < len(options := self._options(scope)):
            before = [slot.read(self.root) for slot, _ in options]
            are_many, changes = math.prod(len(news) for _, news in options) > COMBINATIONS, 0
            try:
                for values in itertools.islice(in_order(options, before, fault.path), tries):
                    more = sum(a != b for a, b in zip(values, before, strict=True))
                    if self.runs > RUNS or (are_many and further is not None and more > changes):
                        break  # of many, what goes further by one change is mended by the next
                    self._write(options, values)
                    again = self._run(module, fault.path, example, expected, _entered(fault), fault.draws)
                    if again is None:
                        return options, values
                    if reached is not None and again.progress > reached:
                        further, changes = (options, values), more
                        if again.path != fault.path:
                            return further
                    if reached is None:
                        modules = again.progress[0]
                    if reached is None or again.progress > reached:
                        reached = again.progress
            finally:
                self._write(options, before)
            # Code that went further than before has read more.
        if further is not None and reached is not None and reached[0] == modules:
            self.next_best = self.next_best or (fault.path, *further)
            return None
        return further

    def _still_own(self, options: Iterable[tuple[Slot, T]]) -> Iterator[tuple[Slot, T]]:
        """Leave out numbers of modules that are parts of the graph by now."""
        modules, known = dict(self.root.named_modules()), self.proposals.classes
        return ((slot, new) for slot, new in options if isinstance(modules.get(slot.path), known[slot.path]))

    def _options(self, scope: Scope) -> Options:
        """List what may be edited."""
        options = [*self._still_own(self.proposals.options(scope, self.reads))]
        if scope.spelled and self.spellings is not None:
            options += self.spellings.options(scope, self.root)
        return options

    def _write(self, options: Options, values: Sequence[int]) -> None:
        for (slot, _), value in zip(options, values, strict=True):
            slot.write(self.root, value)

    def _adopt(self, path: str, options: Options, values: Sequence[int]) -> None:
        """Keep a choice, in the modules that are like this one as well."""
        chosen = {slot: value for (slot, _), value in zip(options, values, strict=True)}
        for slot, value in chosen.items():
            if value != slot.read(self.root):
                self._set(slot, value)
        self._pass_on(path, options, chosen)

    def _take_back(self) -> None:
        for slot, before in reversed(self.passed_on):
            self._set(slot, before)
        self.passed_on.clear()

    def _pass_on(self, path: str, options: Options, chosen: Mapping[Slot, int]) -> None:
        """Make the same choice in modules of the same class where the same numbers have the same options."""
        module = self.root.get_submodule(path)
        own = {_within(slot, news, path): chosen[slot] for slot, news in options if slot.held == 1}
        self.passed_on.clear()
        modules = dict(self.root.named_modules())
        for there, other in modules.items():
            if other is module or self.proposals.classes.get(there) is not self.proposals.classes[path]:
                continue
            theirs = {
                _within(slot, news, there): slot
                for slot, news in self._like(modules, there, [s for s, _ in options if s.held == 1], path)
            }
            if theirs.keys() == own.keys():
                for key, slot in theirs.items():
                    if slot.read(self.root) != own[key]:
                        self.passed_on.append((slot, slot.read(self.root)))
                        self._set(slot, own[key])

    def _like(
        self, modules: Mapping[str, nn.Module], there: str, slots: Sequence[Slot], path: str
    ) -> Iterator[tuple[Slot, list[int]]]:
        """Find the numbers of a module that stand where those of another one do."""
        wanted = {(slot.path[len(path) :], slot.keys) for slot in slots}
        known = self.proposals.classes
        for inside, own in self.proposals.slots.items():
            # Else a part of the graph stands there by now.
            if is_inside(inside, [there]) and isinstance(modules.get(inside), known[inside]):
                for slot, old in own:
                    news = self.proposals.sizes[inside].may_be(old)
                    if news and (slot.path[len(there) :], slot.keys) in wanted:
                        yield slot, [*(n for n in news if n != old), old]


def _within(slot: Slot, news: list[int], path: str) -> tuple[object, ...]:
    return slot.path[len(path) :], slot.keys, tuple(news)


def _entered(fault: Fault) -> Counter[str]:
    """Count how often each layer had been called when the module at fault was entered.

    Entering it again counts it again, if it is a layer of the graph itself.
    """
    calls = Counter(fault.calls)
    if calls[fault.path]:
        calls[fault.path] -= 1
    return calls
