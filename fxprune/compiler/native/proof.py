"""Prove that a copy of an instance computes what its graph does, for other batches, heights and modes."""

from __future__ import annotations

import contextlib
import copy
from dataclasses import replace

import torch
from torch import Tensor, nn

from fxprune.certify.certificate import same_function
from fxprune.certify.float64 import Float64Interpreter, default_float64, doubled, in_double
from fxprune.certify.relative_error import compare
from fxprune.compiler.native.fingerprint import TOLERANCE
from fxprune.compiler.native.slots import own_slots_of
from fxprune.compiler.native.traits import other_examples
from fxprune.errors import first_line
from fxprune.graph.example import Example, seeded_noise
from fxprune.graph.tensors import floats_of, in_float64
from fxprune.result.own_code import Edit, OwnCode
from fxprune.result.pruned_module import PrunedModule

__all__ = ["with_duplicates", "wrong_in"]


def wrong_in(instance: nn.Module, pruned: PrunedModule, follows_mode: bool = True) -> str:
    """Describe what is wrong with an instance; empty if a copy of it equals the graph in float64.

    For another batch; for images of another height, where both take them; and in train mode, where the code
    draws no numbers there.

    follows_mode: the graph computes in train mode what the original does there.
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
    if follows_mode and _differs_in_training(instance, pruned, example):
        return "a copy of it differs in train mode"
    return ""


def _differs_in_training(instance: nn.Module, pruned: PrunedModule, example: Example) -> bool:
    """Compare in train mode; False where it draws numbers, or one of both does not run."""
    example = example.map(in_float64)

    def trained(seed: int) -> list[Tensor]:
        copied = in_float64(copy.deepcopy(instance)).train()
        with torch.no_grad(), default_float64(), in_double(), torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return floats_of(copied(*example.args, **example.kwargs))

    try:
        wanted, again = trained(0), trained(1)
        if compare(wanted, again).error > TOLERANCE:
            return False
        graph = doubled(pruned)
        nn.Module.train(graph)  # without its warnings
        with torch.no_grad(), default_float64():
            got = floats_of(Float64Interpreter(graph).run_on(example))
    except Exception:  # train mode may ask for more than the example holds
        return False
    return len(got) == len(wanted) and compare(wanted, got).error > TOLERANCE


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
