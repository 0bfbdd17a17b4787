"""Prove that an instance, as a copy of it is, computes what its graph does for another batch."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from fxprune.certify.certificate import same_function
from fxprune.compiler.native.fingerprint import TOLERANCE
from fxprune.compiler.native.slots import own_slots_of
from fxprune.graph.example import seeded_noise
from fxprune.result.own_code import Edit, OwnCode
from fxprune.result.pruned_module import PrunedModule

__all__ = ["with_duplicates", "wrong_in"]


def wrong_in(instance: nn.Module, pruned: PrunedModule) -> str:
    """Describe what is wrong with an instance; empty if a copy of it equals the graph in float64."""
    example = seeded_noise(pruned.record.example, pruned)
    if pruned.record.dynamic:
        example = example.with_batch(3)
    try:
        error = same_function(pruned, instance, example)
    except Exception as raised:  # whatever the code does with sizes that it did not expect
        said = (str(raised).strip().splitlines() or [""])[0]
        return f"a copy of it raises {type(raised).__name__}: {said}"
    return "" if error <= TOLERANCE else f"a copy of it differs by {error:.0e} for another batch"


def with_duplicates(model: nn.Module, instance: nn.Module, own: OwnCode) -> OwnCode:
    """Edit, beside each number that code reads, those of the same module that are as large.

    Some classes keep what they were built of, and build their copies of that.
    """
    done = {edit.slot for edit in own.edits}
    news = {(edit.slot.path, edit.old): edit.new for edit in own.edits}
    more = [
        Edit(slot, old, news[path, old])
        for path, held in own_slots_of(model, instance).items()
        for slot, old in held
        if slot not in done and (path, old) in news
    ]
    return replace(own, edits=(*own.edits, *more))
