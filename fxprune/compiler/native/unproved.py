"""Find the numbers that a module's code may read in other calls than the captured one: nothing proves those.

What the call reads has a graph that says what it should be.  A number that only an optional argument, or a
flag, leads to may be a size that shrank, or none: such a module refuses to be called otherwise.
"""

from __future__ import annotations

import contextlib
import inspect
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from fxprune.analysis.analysis import Analysis
from fxprune.capture.modes.follow import branches_on_mode
from fxprune.certify.comparison import same_draws
from fxprune.compiler.native.barred import names_of_forward
from fxprune.compiler.native.coins import COINS, coin_on
from fxprune.compiler.native.flags import flag_of, split_flags
from fxprune.compiler.native.other_calls import other_calls, proves
from fxprune.compiler.native.proof import wrong_in
from fxprune.compiler.native.proposals import WIDTH, Proposals
from fxprune.compiler.native.reads import Reads, reads_noted
from fxprune.compiler.native.sizes import Sizes
from fxprune.compiler.native.slots import own_slots_of
from fxprune.compiler.native.tables import holders_of_tables
from fxprune.compiler.native.untaken import only_in_untaken
from fxprune.errors import listed
from fxprune.graph.copies import own_buffers, structural_copy
from fxprune.graph.example import Example, seeded_noise
from fxprune.graph.tensors import on_meta
from fxprune.result.own_code import Edit, OneWay, OwnCode, Slot, layouts_of
from fxprune.result.pruned_module import PrunedModule

__all__ = ["named_numbers", "with_one_way"]


def with_one_way(
    model: nn.Module,
    analysis: Analysis,
    instance: nn.Module,
    own: OwnCode,
    pruned: PrunedModule,
    sizes: Mapping[str, Sizes],
    seen: Reads | None = None,
) -> OwnCode:
    """Edit, in place, what no call reads to what stands beside it; record where other calls are refused.

    seen: what a call has read of the modules that `named_numbers` gives, if one was watched.
    """
    opened = own.forward.opened if own.forward else ()
    found = [(s, old) for s, old in named_numbers(model, instance, sizes) if s.path not in opened]
    found = [(slot, old) for slot, old in found if seen is None or not seen.has(slot)]
    if not found:
        return own
    example = seeded_noise(pruned.record.example, model)
    example = example.with_batch(2) if pruned.record.dynamic else example
    reads, calls = Reads(), defaultdict[str, set[Any]](set)
    paths = {slot.path for slot, _ in found}
    if not _note(instance, example, paths, False, reads, calls):
        return own
    for coin in COINS if any(branches_on_mode(model.get_submodule(path)) for path in paths) else ():
        with coin_on(coin):
            _note(instance, example, paths, True, reads, calls)
    found = [(slot, old) for slot, old in found if not reads.has(slot) and slot.path in calls]

    others = any(_has_others(type(model.get_submodule(slot.path))) for slot, _ in found)
    calls_of_others = other_calls(model, analysis, pruned) if others else []

    def less_proved() -> list[tuple[Slot, int]]:
        for call in calls_of_others:
            if proves(call, instance):
                _note(instance, call[1], paths, False, reads, calls)
        return [(slot, old) for slot, old in found if not reads.has(slot)]

    found = less_proved()
    # What train mode may read by chance, or by values, is as it was found to be right there; and what says
    # how a table is computed says the original's width, of which the module keeps the plan's channels.
    tables = {*holders_of_tables(model, instance)}
    sure = [(slot, old) for slot, old in found if slot.path not in tables]
    sure = [(slot, old) for slot, old in sure if not branches_on_mode(model.get_submodule(slot.path))]
    proposals = Proposals(model, instance, sizes)
    before, own = own, _with_nearby(instance, own, pruned, sure, sizes, proposals)
    found = found if own is before else less_proved()
    found = [(slot, old) for slot, old in found if not proposals.is_made(slot, old, slot.read(instance))]
    found = [(s, old) for s, old in found if s.held > 1 or not _untaken(model, s)]
    if not found:
        return own
    unread = defaultdict[str, list[Slot]](list)
    for slot, _ in found:
        unread[slot.path].append(slot)
    ways = [
        OneWay(path, listed([*map(str, slots)]), tuple(sorted(calls[path])))
        for path, slots in unread.items()
        if _has_others(type(model.get_submodule(path)))
    ]
    flags = {(path, flag): value for path, flag, value in own.flags}
    for path, flag in split_flags(model, instance, example, unread):
        flags.setdefault((path, flag), flag_of(instance.get_submodule(path), flag))
    said = tuple((path, flag, value) for (path, flag), value in flags.items())
    return replace(own, ways=tuple(ways), flags=said)


def _untaken(model: nn.Module, slot: Slot) -> bool:
    return only_in_untaken(model.get_submodule(slot.path), str(slot.keys[0]))


def _with_nearby(
    instance: nn.Module,
    own: OwnCode,
    pruned: PrunedModule,
    found: Sequence[tuple[Slot, int]],
    sizes: Mapping[str, Sizes],
    proposals: Proposals,
) -> OwnCode:
    """Edit, in place, other numbers to what source makes of them, or to the size of what lies right there."""
    done = {edit.slot for edit in own.edits}
    found = [(slot, old) for slot, old in found if slot not in done and _may_be_width(slot, old, proposals)]
    news = [(s, old, proposals.made.get(s) or sizes[s.path].nearby(old)) for s, old in found]
    edits = [Edit(slot, old, new) for slot, old, new in news if new not in (None, old)]
    for edit in edits:
        edit.slot.write(instance, edit.new)
    if edits and not on_meta(instance) and wrong_in(instance, pruned):  # something looks at them after all
        for edit in edits:
            edit.slot.write(instance, edit.old)
        return own
    return replace(own, edits=(*own.edits, *edits)) if edits else own


def _may_be_width(slot: Slot, old: int, proposals: Proposals) -> bool:
    """Is it a width by source, or small as heads are?  None is one of several (sides), nor a bound."""
    if isinstance(slot.keys[-1], int):
        return False
    in_code = proposals.in_code(slot)
    return in_code is not False and (old < WIDTH or bool(in_code))


def named_numbers(
    model: nn.Module, instance: nn.Module, sizes: Mapping[str, Sizes]
) -> Iterator[tuple[Slot, int]]:
    """List the numbers that the code of their module's `forward` names and that may be sizes that shrank."""
    slots = own_slots_of(model, instance)
    names: dict[type, set[str]] = {}
    for path, module in model.named_modules():
        may_be = [(slot, old) for slot, old in slots.get(path, ()) if sizes[path].may_be(old)]
        if may_be and type(module) not in names:
            names[type(module)] = names_of_forward(module)
        for slot, old in may_be:
            words = [key for key in slot.keys[: slot.held] if isinstance(key, str)]
            if {*words} <= names[type(module)]:
                yield slot, old


def _note(
    instance: nn.Module,
    example: Example,
    paths: set[str],
    training: bool,
    reads: Reads,
    calls: Mapping[str, set[Any]],
) -> bool:
    """Note what code reads, and how modules are called; on the meta device, if it needs no numbers.

    Returns whether it ran.
    """
    for copied, given in (
        (structural_copy(instance, _on_meta), example.map(_on_meta)),
        (structural_copy(instance, own_buffers), example.map(Tensor.clone)),
    ):
        for module in copied.modules():
            module.training = training
        for path in paths:

            def note(module: nn.Module, args: Any, kwargs: Any, path: str = path) -> None:
                with contextlib.suppress(TypeError):
                    calls[path].add(layouts_of(module, args, kwargs))

            copied.get_submodule(path).register_forward_pre_hook(note, with_kwargs=True)
        with (
            contextlib.suppress(Exception),
            torch.no_grad(),
            same_draws(instance),
            reads_noted(copied, reads, only=paths),
        ):
            copied(*given.args, **given.kwargs)
            return True
    return False


def _on_meta(t: Tensor) -> Tensor:
    made = t.detach().to("meta")
    return nn.Parameter(made, requires_grad=False) if isinstance(t, nn.Parameter) else made


def _has_others(cls: type[nn.Module]) -> bool:
    """May it be called in other ways?"""
    parameters = [*inspect.signature(cls.forward).parameters.values()][1:]
    return any(p.default is not p.empty or p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters)
