"""Prove that a copy of an instance computes what its graph does, for other batches and heights."""

from __future__ import annotations

import contextlib
from dataclasses import replace

from torch import nn

from fxprune.certify.certificate import same_function
from fxprune.compiler.native.fingerprint import TOLERANCE
from fxprune.compiler.native.slots import own_slots_of
from fxprune.compiler.native.traits import other_examples
from fxprune.errors import first_line
from fxprune.graph.example import seeded_noise
from fxprune.result.own_code import Edit, OwnCode
from fxprune.result.pruned_module import PrunedModule

__all__ = ["with_duplicates", "wrong_in"]


def wrong_in(instance: nn.Module, pruned: PrunedModule) -> str:
    """Describe what is wrong with an instance; empty if a copy of it equals the graph in float64.

    In eval mode, for another batch, and for images of another height, where both take them.
    """
    example = seeded_noise(pruned.record.example, pruned)
    if pruned.record.dynamic:
        example = example.with_batch(3)
    try:
        error = same_function(pruned, instance, example)
    except Exception as raised:  # whatever the code does with sizes that it did not expect
        return f"a copy of it raises {type(raised).__name__}: {first_line(raised)}"
    if error > TOLERANCE:
        return f"a copy of it differs by {error:.0e} for another batch"
    higher = next(other_examples(example))
    with contextlib.suppress(Exception):  # not every model takes other sizes
        if same_function(pruned, instance, higher) > TOLERANCE:
            return "a copy of it differs for images of another height"
    return ""


def with_duplicates(model: nn.Module, instance: nn.Module, own: OwnCode, *, every: bool) -> OwnCode:
    """Edit, beside each number that code reads, those of the same module that are as large.

    Some classes keep what they were built of, and build their copies of that.

    every: of all modules, else of those that say themselves what a copy of them has.
    """
    done = {edit.slot for edit in own.edits}
    news = {(edit.slot.path, edit.old): edit.new for edit in own.edits}
    more = [
        Edit(slot, old, news[path, old])
        for path, held in own_slots_of(model, instance).items()
        for slot, old in held
        if slot not in done and (path, old) in news and (every or _says_its_state(model.get_submodule(path)))
    ]
    return replace(own, edits=(*own.edits, *more))


def _says_its_state(module: nn.Module) -> bool:
    names = ("__getstate__", "__setstate__", "__reduce__", "__reduce_ex__", "__deepcopy__", "__copy__")
    plain = nn.Module
    return any(getattr(type(module), n, None) is not getattr(plain, n, None) for n in names)
