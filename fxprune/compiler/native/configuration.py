"""Let the configuration that a model is built of say the new sizes, where it can.

A model that is saved by its own library comes back from its configuration: one that says other sizes than the
weights have would build another function in silence.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import math
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from fxprune.certify.certificate import same_function
from fxprune.certify.randomise import uninitialised
from fxprune.compiler.native.computed_numbers import computed_numbers, read_number
from fxprune.compiler.native.sizes import Sizes
from fxprune.compiler.native.slots import own_slots_of
from fxprune.graph.example import Example, seeded_noise
from fxprune.graph.tensors import holds_attributes, on_meta
from fxprune.result.own_code import Edit, Slot
from fxprune.result.own_forward import users_class
from fxprune.result.pruned_module import PrunedModule

__all__ = ["OTHER_FUNCTION", "configured"]

SAVES = "save_pretrained"  # how a library that builds models of configurations calls its saving
OTHER_FUNCTION = "builds another function of its sizes"
TRIES = 48  # combinations of changes at a time: each builds a model

Option = tuple[Slot, int, list[int]]  # a number, as it was, and all that it may have become
Change = tuple[Slot, float, float]  # a number, as it was and as it is to be


def configured(
    model: nn.Module, instance: nn.Module, pruned: PrunedModule, sizes: Sizes, edits: Sequence[Edit]
) -> tuple[list[Edit], str]:
    """Edit the configuration of an instance, in place, until its class builds the same function of it.

    Returns the edits; and, where none will do, that in words: its library can't save it.
    """
    if not hasattr(type(model), SAVES):
        return [], ""
    for name, held in vars(instance).items():
        if holds_attributes(held) and _is_built_of(instance, name):
            if on_meta(instance):
                return [], f"{type(held).__name__} was not proved, for want of numbers on the meta device"
            found = _edited(model, instance, pruned, name, sizes, edits)
            return ([], f"{type(held).__name__} {found}") if isinstance(found, str) else (found, "")
    return [], ""


def _is_built_of(instance: nn.Module, name: str) -> bool:
    """Does the class build models of what this attribute holds, without numbers or at least with them?"""
    return _built_on_meta(instance, name) is not None or _built(instance, vars(instance)[name]) is not None


def _edited(
    model: nn.Module,
    instance: nn.Module,
    pruned: PrunedModule,
    name: str,
    sizes: Sizes,
    edits: Sequence[Edit],
) -> list[Edit] | str:
    """Edit an instance's configuration; where none says its sizes, return that in words."""
    done = {edit.slot for edit in edits}
    options = [
        (slot, old, news)
        for slot, old in own_slots_of(model, instance)[""]
        if slot.keys[0] == name and slot not in done and (news := _news(old, sizes, edits))
    ]
    fitting = _fitting(instance, name, options)
    if fitting is None:
        return "can't express its sizes"
    rest = [option for option in options if option[0] not in {slot for slot, _, _ in fitting}]
    for changes in itertools.islice(_choices(rest), TRIES):
        with _written(instance, changes):
            if not _misfits(instance, name) and _is_same(instance, vars(instance)[name], pruned):
                found = [*fitting, *changes]
                break
    else:
        found = None
    for slot, old, new in found or fitting:
        slot.write(instance, old if found is None else new)
    if found is None:
        return OTHER_FUNCTION
    changed = [Edit(*change) for change in found]
    changed += _computed(model, instance, pruned, name, {*done, *(edit.slot for edit in changed)})
    return [*changed, *_as_built(model, instance, name, {*done, *(edit.slot for edit in changed)})]


def _computed(
    model: nn.Module, instance: nn.Module, pruned: PrunedModule, name: str, done: Collection[Slot]
) -> list[Edit]:
    """Edit what a configuration's constructor computes of the numbers that have changed, if it may say so."""
    slots = [slot for slot, _ in own_slots_of(model, instance)[""] if slot.keys[0] == name]
    edits = computed_numbers(model, instance, [slot for slot in slots if slot not in done])
    changes = [(edit.slot, edit.old, edit.new) for edit in edits]
    with _written(instance, changes):
        same = not _misfits(instance, name) and _is_same(instance, vars(instance)[name], pruned)
    for edit in edits if same else ():
        edit.slot.write(instance, edit.new)
    return edits if same else []


def _as_built(model: nn.Module, instance: nn.Module, name: str, done: Collection[Slot]) -> list[Edit]:
    """Edit the numbers that no code has read to what the class itself makes of the configuration."""
    before, now = (_built_on_meta(root, name) for root in (model, instance))
    edits = []
    for slots in own_slots_of(model, instance).values():
        for slot, old in slots:
            if slot not in done and slot.keys[0] != name and read_number(before, slot) == old:
                new = read_number(now, slot)
                if new not in (None, old):
                    slot.write(instance, new)
                    edits.append(Edit(slot, old, new))
    return edits


def _built_on_meta(root: nn.Module, name: str) -> nn.Module | None:
    with torch.device("meta"):
        return _built(root, vars(root)[name])


def _fitting(instance: nn.Module, name: str, options: list[Option]) -> list[Change] | None:
    """Edit a configuration until a model of it has weights of the instance's shapes; None: it never has.

    The change, or the two, after which the fewest shapes are wrong, and again.
    """
    done: list[Change] = []
    wrong = _misfits(instance, name)
    while wrong:
        rest = [option for option in options if option[0] not in {slot for slot, _, _ in done}]
        best: list[Change] = []
        for count in (1, 2):
            for changes in itertools.islice(_choices(rest, count, count), TRIES):
                with _written(instance, changes):
                    now = _misfits(instance, name)
                if now < wrong:
                    wrong, best = now, changes
            if best:
                break
        for slot, _, new in best:
            slot.write(instance, new)
        done += best
        if not best:
            for slot, old, _ in done:
                slot.write(instance, old)
            return None
    return done


@contextlib.contextmanager
def _written(instance: nn.Module, changes: list[Change]) -> Iterator[None]:
    """Write changes into an instance's configuration for a while."""
    for slot, _, new in changes:
        slot.write(instance, new)
    try:
        yield
    finally:
        for slot, old, _ in changes:
            slot.write(instance, old)


def _misfits(instance: nn.Module, name: str) -> float:
    """Count the tensors, by name and shape, that an instance or a model of its configuration has alone."""
    built = _built_on_meta(instance, name)
    if built is None:
        return math.inf
    wanted = {key: t.shape for key, t in instance.state_dict().items()}
    there = {key: t.shape for key, t in built.state_dict().items()}
    return float(len([key for key in {*wanted, *there} if wanted.get(key) != there.get(key)]))


def _news(old: int, sizes: Sizes, edits: Sequence[Edit]) -> list[int]:
    """List what a number may have become: what it did elsewhere in the model first."""
    elsewhere = [edit.new for edit in edits if edit.old == old and isinstance(edit.new, int)]
    return [n for n in dict.fromkeys((*elsewhere, *sizes.may_be(old))) if n != old]


def _choices(options: list[Option], least: int = 0, most: int = 3) -> Iterator[list[Change]]:
    """List no change, then every one, two and three of them; of `least` to `most` changes."""
    single = [(slot, old, new) for slot, old, news in options for new in news]
    for count in range(least, most + 1):
        for some in itertools.combinations(single, count):
            if len({slot for slot, _, _ in some}) == count:
                yield [*some]


def _built(instance: nn.Module, configuration: Any) -> nn.Module | None:
    """Build a model of the class from a configuration alone, if that is how it is built."""
    try:
        with uninitialised():
            return users_class(instance)(copy.deepcopy(configuration)).eval()
    except Exception:  # whatever a constructor says of an argument that it does not take
        return None


def _is_same(instance: nn.Module, configuration: Any, pruned: PrunedModule) -> bool:
    built = _built(instance, configuration)
    if built is None:
        return False
    try:
        built.load_state_dict(instance.state_dict(), strict=True)
        return same_function(pruned, built, _example(pruned)) <= 1e-6
    except Exception:  # other shapes, or code that does not take them
        return False


def _example(pruned: PrunedModule) -> Example:
    example = seeded_noise(pruned.record.example, pruned)
    return example.with_batch(2) if pruned.record.dynamic else example
