"""What a plan makes of a model, in the form asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import nn

from fxprune.analysis.analysis import Analysis
from fxprune.capture.held_state import HeldState
from fxprune.choose.planned import as_planned
from fxprune.compiler.native.configuration import OTHER_FUNCTION, configured
from fxprune.compiler.native.doubtful import with_doubts
from fxprune.compiler.native.find import Found, own_code_of
from fxprune.compiler.native.instance import Slices, instance_of, with_form
from fxprune.compiler.native.proof import with_duplicates, wrong_in
from fxprune.compiler.native.reads import Reads
from fxprune.compiler.native.rescaled import held_scales, rescaled, with_branches
from fxprune.compiler.native.scales import computed_scales, default_scales, everywhere
from fxprune.compiler.native.sizes import Sizes, sizes_by_module
from fxprune.compiler.native.structure import resized_copy
from fxprune.compiler.native.tables import with_numbers, with_tables
from fxprune.compiler.native.traced import own_code_by_trace
from fxprune.compiler.native.training import trained_alike
from fxprune.compiler.native.unproved import with_one_way
from fxprune.compiler.native.unused import unused_axes
from fxprune.compiler.rewrite import rewrite
from fxprune.errors import OptionError, UnsupportedModuleError, shown
from fxprune.graph.collector import collector_paused
from fxprune.graph.tensors import named_tensors, on_meta
from fxprune.graph.values import refuse_broken
from fxprune.passes.check import Check
from fxprune.result.forms import attach
from fxprune.result.own_code import OwnCode, Part
from fxprune.result.plan import Plan
from fxprune.result.pruned_module import PrunedModule
from fxprune.result.selection import Selection

__all__ = ["check_form", "in_form", "own_class"]

FORMS = ("graph", "module")
NO_NUMBERS = (
    "form='module': an instance of this class is proved by running it beside its graph, and a model on "
    "the meta device has no numbers: give it weights first (to_empty, load_state_dict), or prune it as a "
    "graph and apply the plan once it has them (fxprune.apply(model, plan, form='module'))"
)

_Made = tuple[nn.Module, OwnCode, PrunedModule]


def check_form(form: str) -> None:
    """Raise OptionError for a form that there is none of."""
    if form not in FORMS:
        raise OptionError(f"form={shown(form)}: one of {', '.join(map(repr, FORMS))}")


def in_form(
    form: str,
    model: nn.Module,
    analysis: Analysis,
    plan: Plan,
    *,
    like: nn.Module | None = None,
    check: Check = False,
) -> nn.Module:
    """Rewrite a model by a plan, as a graph or as an instance of its own class.

    like: the smaller model whose names and sizes the plan gives.

    Raises:
        OptionError: an unknown form.
        PlanError: the plan is for another model.
    """
    check_form(form)
    if form == "graph":
        return rewrite(model, analysis, plan, check=check)
    if like is not None:
        return _stock_class(like, rewrite(model, analysis, plan))
    return own_class(model, analysis, plan, check=check)


def own_class(model: nn.Module, analysis: Analysis, plan: Plan, *, check: Check = False) -> nn.Module:
    """Build an instance of the model's own class that equals the graph that a plan gives.

    Where the root's own code can't hold the new sizes, and no part can stand for what is wrong in it, that is
    the graph itself, and its record says why.  What code keeps outside of modules, of runs in float64 and on
    sliced weights, is put back.
    """
    with HeldState(model).restored(forget=True):
        return _own_class(model, analysis, plan, check=check)


def _own_class(model: nn.Module, analysis: Analysis, plan: Plan, *, check: Check) -> nn.Module:
    analysis = as_planned(analysis, plan)
    selection = Selection.from_plan(analysis, plan)
    held = held_scales(model, analysis.module, plan.scales)  # folded again, if its configuration needs it
    given = {node: scale for node, scale in plan.scales.items() if node not in held}
    plan = replace(plan, scales={**default_scales(analysis, selection), **given})
    pruned = rewrite(model, analysis, plan, check=check, run=False)
    sizes, unused = sizes_by_module(model, analysis, selection), unused_axes(model, analysis)
    slices = Slices(analysis, selection, unused, pruned)
    with collector_paused():
        traced = own_code_by_trace(model, analysis, sizes, slices, pruned)
        if traced is not None:
            made, own, reads = traced
            return _finished(model, analysis, (made, own, pruned), sizes, slices, check=check, reads=reads)
    if on_meta(model):
        raise OptionError(NO_NUMBERS)
    refuse_broken(pruned, analysis.captured.example)  # `rewrite` did not try it, and no trace agreed with it
    why = ""
    for spells in (True, False):  # sizes found in code on two examples may fail the proof
        try:
            found = _made_by_running(model, analysis, plan, slices, sizes, pruned, check=check, spells=spells)
        except (UnsupportedModuleError, SyntaxError):  # code that can't be compiled anew
            if not spells:
                raise
            continue
        if not isinstance(found, Found):
            return _finished(model, analysis, found, sizes, slices, check=check)
        why = found.why
        if not found.spelled:
            break
    return _no_instance(pruned, why)


def _made_by_running(
    model: nn.Module,
    analysis: Analysis,
    plan: Plan,
    slices: Slices,
    sizes: Mapping[str, Sizes],
    pruned: PrunedModule,
    *,
    check: Check,
    spells: bool,
) -> _Made | Found:
    """Make an instance equal to a pruned graph by running it; where nothing does, return why."""
    found = own_code_of(model, analysis, sizes, slices, pruned, spells=spells)
    unheld = everywhere(model) if found.own is None else _unheld(found.own)
    more = computed_scales(analysis, slices.selection, pruned, unheld) if unheld else {}
    if found.own is None:  # what is at fault may be anything
        held = held_scales(model, pruned, more)
        more = {node: scale for node, scale in more.items() if node not in held}
    if more:  # code that computes its scale from a head dim can hold another one, once that is folded
        folded = rewrite(model, analysis, replace(plan, scales={**more, **plan.scales}), check=check)
        others = Slices(analysis, slices.selection, slices.unused, folded)
        at_most = None if found.own is None else _replaced(found.own)[:2]
        other = own_code_of(model, analysis, sizes, others, folded, spells=spells, at_most=at_most)
        spelled = found.spelled or other.spelled
        if other.own is not None and (found.own is None or _replaced(other.own) < _replaced(found.own)):
            found, pruned, slices = other, folded, others
        found = replace(found, spelled=spelled)
    if found.own is None:
        return found
    made = instance_of(model, found.own, pruned, slices)
    own = with_tables(model, made, analysis, slices.selection, found.own)
    wrong = wrong_in(made, pruned)
    for every in (False, True):
        if wrong:
            edited_twice = with_duplicates(model, made, replace(own, tables=()), every=every)
            made = instance_of(model, edited_twice, pruned, slices)
            edited_twice = with_tables(model, made, analysis, slices.selection, edited_twice)
            wrong = wrong_in(made, pruned)
            own = own if wrong else edited_twice
    return replace(found, own=None, why=wrong) if wrong else (made, own, pruned)


def _unheld(own: OwnCode) -> list[str]:
    """List the modules whose own code, as it is written, can't hold the sizes."""
    return [*(part.path for part in own.parts), *_opened(own), *(s.path for s in own.spellings)]


def _opened(own: OwnCode) -> tuple[str, ...]:
    """List the modules whose own `forward` is not called any more."""
    return own.forward.opened if own.forward else ()


def _replaced(own: OwnCode) -> tuple[int, int, int]:
    """Count what a graph stands for: `forward`s first, then modules; then sizes in code."""
    return len(_opened(own)), len(own.parts), len(own.spellings)


def _finished(
    model: nn.Module,
    analysis: Analysis,
    found: _Made,
    sizes: Mapping[str, Sizes],
    slices: Slices,
    *,
    check: Check,
    reads: Reads | None = None,
) -> nn.Module:
    """Let train mode and the configuration follow, or say that they can't; record how it was made.

    reads: what was read while its own graph became the pruned one, if it did.
    """
    found = with_branches(model, analysis, found, slices, check=check)
    finished = _followed(model, analysis, found, sizes, reads)
    if finished[1].unsaid.endswith(OTHER_FUNCTION):
        other = rescaled(model, analysis, found[1], found[2], slices, check=check)
        other = None if other is None else _followed(model, analysis, other, sizes)
        if other is not None and not other[1].unsaid and other[1].untrained == finished[1].untrained:
            finished = other
    made, own, pruned = finished
    own = with_doubts(model, made, with_numbers(made, own), pruned, sizes)
    with_form(made, own, pruned, shared=False)
    return made


def _followed(
    model: nn.Module,
    analysis: Analysis,
    found: _Made,
    sizes: Mapping[str, Sizes],
    reads: Reads | None = None,
) -> _Made:
    """Let train mode and the configuration of an instance follow, or note that they can't."""
    made, own, pruned = found
    own = trained_alike(model, analysis, made, own, pruned, sizes, traced=reads is not None)
    own = with_one_way(model, analysis, made, own, pruned, sizes, reads)
    edits, unsaid = configured(model, made, pruned, sizes[""], own.edits)
    return made, replace(own, edits=(*own.edits, *edits), unsaid=unsaid), pruned


def _no_instance(pruned: PrunedModule, why: str) -> PrunedModule:
    """Return the graph itself, with why it is no instance."""
    pruned.record = replace(pruned.record, own=OwnCode(parts=(Part("", why, (), (), None),)))
    return pruned


def _stock_class(like: nn.Module, pruned: PrunedModule) -> nn.Module:
    """Put the smaller model itself on the result's tensors."""
    tensors = dict(named_tensors(pruned))
    made = resized_copy(like, lambda names, t: tensors.get(names[0], t), pruned)
    pruned.record = replace(pruned.record, own=OwnCode())
    attach(made, pruned)
    return made
