"""Find what makes an instance of the user's own class compute what the pruned graph does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial

from torch import nn

from fxprune.analysis.analysis import Analysis
from fxprune.certify.float64 import doubled, in_eval_mode
from fxprune.compiler.native.boundaries import Boundary, boundaries_of
from fxprune.compiler.native.calls import CallOptions
from fxprune.compiler.native.instance import Slices
from fxprune.compiler.native.parts import PartError, cut, part_at
from fxprune.compiler.native.proposals import Proposals
from fxprune.compiler.native.root_forward import forward_at, replace_forward
from fxprune.compiler.native.search import Search
from fxprune.compiler.native.sizes import Sizes
from fxprune.compiler.native.spellings import AS_WRITTEN, SpelledSlot, Spellings
from fxprune.compiler.native.structure import in_double_as, resized_copy
from fxprune.compiler.native.traits import Traits, other_examples, traits_of
from fxprune.compiler.native.watch import Expected, Fault, expected_of
from fxprune.graph.example import seeded_noise
from fxprune.graph.tensors import in_float64, is_inside
from fxprune.result.own_code import Edit, Forward, OwnCode, Part, Spelling
from fxprune.result.pruned_module import PrunedModule

__all__ = ["Found", "own_code_of"]


@dataclass(frozen=True)
class Found:
    """What the search for an instance came to.

    own: what makes it; None where nothing does.
    why: what the code said then, with the line.
    spelled: sizes in code were edited on the way; without that it may come to something else.
    """

    own: OwnCode | None
    why: str = ""
    spelled: bool = False


def own_code_of(
    model: nn.Module,
    analysis: Analysis,
    sizes: Mapping[str, Sizes],
    slices: Slices,
    pruned: PrunedModule,
    *,
    spells: bool = True,
    at_most: tuple[int, int] | None = None,
) -> Found:
    """Find the edits and the parts that make an instance of the model's class equal a pruned graph.

    In float64, to 1e-8, on an example.  Where a module's own code can't hold the new sizes, the smallest
    module around it that can stand alone becomes its part of the graph.

    spells: sizes that no state has, but code computes, may be other ones as well.
    at_most: how many forwards and modules a graph may stand for; with more, nothing is found.
    """
    return _Finder(model, analysis, sizes, slices, pruned, spells=spells).find(at_most)


class _Finder:
    """Edits a float64 instance until it equals the graph, and puts parts of that in where no edits do.

    double: the pruned graph in float64.
    boundaries: where modules begin and end in the captured graph; None until edits alone have failed.
    """

    def __init__(
        self,
        model: nn.Module,
        analysis: Analysis,
        sizes: Mapping[str, Sizes],
        slices: Slices,
        pruned: PrunedModule,
        *,
        spells: bool,
    ) -> None:
        self.model, self.analysis, self.sizes, self.spells = model, analysis, sizes, spells
        self.selection = slices.selection
        self.double = doubled(pruned)
        root = resized_copy(model, lambda n, t: in_double_as(slices(n, t)), pruned)
        in_eval_mode(root)
        example = analysis.captured.example.with_batch(None if analysis.captured.fixed_batch else 2)
        self.example = seeded_noise(example, model).map(in_float64)
        removed = analysis.removal.branches if analysis.removal else ()
        shorter = frozenset(around for b in removed if (around := b.name.rpartition(".")[0]))
        self.search = Search(root, Proposals(model, root, sizes), shorter=shorter)
        self.parts: dict[str, Part] = {}
        self.boundaries: dict[str, list[Boundary]] | None = None
        self.traits: Traits = {}
        self.forward: Forward | None = None

    def find(self, at_most: tuple[int, int] | None = None) -> Found:
        # No numbers mend what code returns that calls a branch that is gone: look closer at once.
        closer = bool(self.search.shorter)
        expected = self._looked_closer() if closer else expected_of(self.double, self.example)
        fault = self.search.fault(expected)
        while fault is not None:
            if self.boundaries is None:  # a second look, at what each module returns
                expected = self._looked_closer()
            elif not (self._replace(fault) or self._open(fault)) or (at_most and self._replaced > at_most):
                return Found(None, fault.error, self.search.spelled)
            fault = self.search.fault(expected)
        self.search.set_back(self.model, expected)
        own = OwnCode(
            tuple(self._edits()),
            tuple(self.parts.values()),
            forward=self.forward,
            spellings=tuple(self._spellings()),
        )
        return Found(own, spelled=self.search.spelled)

    @property
    def _replaced(self) -> tuple[int, int]:
        return len(self.forward.opened) if self.forward else 0, len(self.parts)

    def _spellings(self) -> Iterator[Spelling]:
        """List the sizes that code has from attributes, less what a graph stands for."""
        opened = self.forward.opened if self.forward else ()
        for slot, new in self.search.edits.items():
            gone = is_inside(slot.path, self.parts) or slot.path in opened
            if isinstance(slot, SpelledSlot) and new != AS_WRITTEN and not gone:
                yield Spelling(slot.path, slot.place, slot.old, slot.meaning(new))

    def _edits(self) -> Iterator[Edit]:
        """List the edits, less those in a part, and of numbers that no code read and that may be no width."""
        search = self.search
        for slot, new in search.edits.items():
            if isinstance(slot, SpelledSlot):
                continue
            old = slot.read(self.model)
            sure = search.reads.has(slot) or search.proposals.is_evident(slot, old)
            if old != new and sure and not is_inside(slot.path, self.parts):
                yield Edit(slot, old, new)

    def _looked_closer(self) -> Expected:
        """Find where modules begin and end and what code computes sizes; return what modules should give."""
        removal = self.analysis.removal
        removed = {b.add.name: b.source.name for b in removal.branches} if removal else {}
        captured = self.analysis.original.module
        for other in (*other_examples(self.example), None):
            examples = [self.example] if other is None else [self.example, other]
            try:
                self.traits = traits_of(self.double, examples)
                self.boundaries = boundaries_of(self.model, captured, examples, removed)
            except Exception:  # not every model takes other sizes, or says so in one way
                if other is None:
                    raise
            else:
                if self.spells:
                    calls = partial(CallOptions, self.model, self.analysis, self.selection, self.example)
                    self.search.spellings = Spellings(self.model, self.sizes, examples, calls)
                break
        assert self.boundaries is not None
        return expected_of(self.double, self.example, self.boundaries)

    def _replace(self, fault: Fault) -> bool:
        """Put the graph's part in the place of the module at fault, or of the smallest around it that can."""
        path, root = fault.path, self.search.root
        while path:
            if not is_inside(path, self.parts):
                try:
                    inside = [known.why for p, known in self.parts.items() if is_inside(p, [path])]
                    part = self._part(path, inside[0] if inside else fault.error)
                    root.set_submodule(path, cut(part, root, self.double))
                    self.parts = {p: known for p, known in self.parts.items() if not is_inside(p, [path])}
                    self.parts[path] = part
                    return True
                except PartError:
                    pass  # what lies around it may have what it needs
            path = path.rpartition(".")[0]
        return False

    def _open(self, fault: Fault) -> bool:
        """Put the graph in the place of the root's forward, and of what leads from it to the fault."""
        opened = dict.fromkeys(self.forward.opened if self.forward else [""])
        path = fault.path
        if is_inside(path, self.parts) or (self.forward is not None and path in opened):
            return False
        while path:
            opened[path] = None
            path = path.rpartition(".")[0]
        assert self.boundaries is not None
        why = self.forward.why if self.forward else fault.error
        try:
            found = forward_at(self.model, self.boundaries, opened, why, self.traits, self.double)
        except PartError:
            return False
        replace_forward(self.search.root, found, self.double)
        self.forward = found
        return True

    def _part(self, path: str, why: str) -> Part:
        assert self.boundaries is not None
        return part_at(self.model, self.boundaries.get(path, []), why, self.traits, self.double)
