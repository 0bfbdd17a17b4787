"""Find the numbers that an instance's code needs by its own graph, beside the pruned one.

One trace where the first proposals hold; where numbers differ, the difference says what they should be.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import partial

from torch import nn

from fxprune.analysis.analysis import Analysis
from fxprune.capture.attention import is_spelled_out
from fxprune.capture.trace import capture_alike
from fxprune.compiler.native.instance import Slices
from fxprune.compiler.native.proof import wrong_in
from fxprune.compiler.native.proposals import Proposals
from fxprune.compiler.native.reads import Reads, reads_noted
from fxprune.compiler.native.same_graph import Difference, differences
from fxprune.compiler.native.sizes import Sizes
from fxprune.compiler.native.structure import resized_copy
from fxprune.compiler.native.tables import with_tables
from fxprune.compiler.native.training import trains_otherwise
from fxprune.compiler.native.unproved import named_numbers
from fxprune.result.own_code import Edit, OwnCode, Slot
from fxprune.result.pruned_module import PrunedModule

__all__ = ["own_code_by_trace"]

TRACES = 4  # at most; each with the numbers that the one before asked for
MOST_TIMES = 4  # that a width in code may be of a number that its module holds


def own_code_by_trace(
    model: nn.Module,
    analysis: Analysis,
    sizes: Mapping[str, Sizes],
    slices: Slices,
    pruned: PrunedModule,
) -> tuple[nn.Module, OwnCode, Reads] | None:
    """Find edits with which the model's own code traces to exactly the pruned graph.

    Returns the instance, what was edited, and what was read of what `named_numbers` gives; None where no
    numbers make its graph that one.
    """
    if analysis.captured.way != "symbolic" or any(map(_copies_itself, model.modules())):
        return None
    root = resized_copy(model, slices, pruned)
    proposals = Proposals(model, root, sizes)
    edits: dict[Slot, int] = {}
    before: dict[Slot, int] = {}  # what a layer that the copy described anew says by itself
    more = {**dict(proposals.second()), **dict(proposals.first())}
    most = sys.maxsize
    named = {slot.path for slot, _ in named_numbers(model, root, sizes)}
    for _ in range(TRACES):
        for slot, new in more.items():
            before.setdefault(slot, slot.read(root))
            slot.write(root, new)
        edits |= more
        reads = Reads()
        unsure = {slot.path for slot in edits if not proposals.is_evident(slot, slot.read(model))}
        watched = partial(reads_noted, reads=reads, only=unsure | named)
        try:
            own = capture_alike(root, analysis.captured, taught=analysis.rules.taught, watched=watched)
        except Exception:  # whatever the code does with sizes that it did not expect
            return None
        found = [*differences(analysis.module, own.module, pruned)]
        if not found:
            own_code = OwnCode(tuple(_kept(root, model, proposals, edits, before, reads)))
            own_code = with_tables(model, root, analysis, slices.selection, own_code)
            # What a library's own attention does with the sizes, its plain code does not tell; nor does
            # the trace know the numbers that went back, which code may look at in ways that none notes.
            went_back = len(own_code.edits) < sum(slot.read(model) != new for slot, new in edits.items())
            run = went_back or is_spelled_out(root, own.module.graph)
            wrong = run and (wrong_in(root, pruned) or trains_otherwise(model, root, pruned))
            return None if wrong else (root, own_code, reads)
        more = _corrected(root, proposals, [d for d in found if d.is_number])
        if not more or len(found) >= most:
            return None
        most = len(found)
    return None


def _corrected(root: nn.Module, proposals: Proposals, found: Iterable[Difference]) -> dict[Slot, int]:
    """Find what numbers of a module, or of the nearest around it, make the numbers of its code right.

    A number may be a multiple of the one that it holds (`3 * self.dim`).
    """
    edits: dict[Slot, int] = {}
    for difference in dict.fromkeys(found):
        path, news = difference.module, dict[Slot, int]()
        while not news:
            for slot, old in proposals.slots.get(path, ()):
                times, rest = divmod(difference.got, slot.read(root))
                new, other = divmod(difference.wanted, max(times, 1))
                if rest or other or times > MOST_TIMES:
                    continue
                if new in (old, *proposals.sizes[path].may_be(old)):
                    news[slot] = new
            exact = {slot: new for slot, new in news.items() if slot.read(root) == difference.got}
            news = exact or news
            back = [slot for slot, old in proposals.slots.get(path, ()) if news.get(slot) == old]
            bounds = {slot: news[slot] for slot in back if not proposals.is_told(slot, news[slot])}
            news = bounds if bounds and len(back) == len(news) else news  # the others are widths by source
            if not path:
                break
            path = path.rpartition(".")[0]
        edits = {**news, **edits}
    return edits


def _copies_itself(module: nn.Module) -> bool:
    """Does it say itself how it is copied?  Then what it holds is not what a copy of it will."""
    cls = type(module)
    return (
        any(hasattr(cls, name) for name in ("__deepcopy__", "__copy__"))
        or cls.__reduce_ex__ is not object.__reduce_ex__
    )


def _kept(
    root: nn.Module,
    model: nn.Module,
    proposals: Proposals,
    edits: Mapping[Slot, int],
    before: Mapping[Slot, int],
    reads: Reads,
) -> Iterator[Edit]:
    """List the edits, less those of numbers that no code read and that may be no widths: they go back."""
    for slot, new in edits.items():
        old = slot.read(model)
        if old == new:
            continue
        if reads.has(slot) or proposals.is_evident(slot, old):
            yield Edit(slot, old, new)
        else:
            slot.write(root, before[slot])
