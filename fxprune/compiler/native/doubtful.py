"""Find the methods that read numbers which may be widths that shrank, or none: no run and no source tells.

Such a number is as the original has it, and a method that reads it is refused: but none that a call runs.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from types import FunctionType

import torch
from torch import Tensor, nn

from fxprune.capture.reached import called
from fxprune.certify.comparison import same_draws
from fxprune.compiler.native.barred import methods_that_name, own_functions
from fxprune.compiler.native.proposals import Proposals
from fxprune.compiler.native.refusing import call_instead
from fxprune.compiler.native.sizes import Sizes
from fxprune.errors import listed
from fxprune.graph.copies import own_buffers, structural_copy
from fxprune.graph.example import seeded_noise
from fxprune.graph.tensors import on_meta
from fxprune.result.own_code import OwnCode
from fxprune.result.pruned_module import PrunedModule

__all__ = ["with_doubts"]

_Method = tuple[str, str]  # the path of a module, and a name


def with_doubts(
    model: nn.Module, instance: nn.Module, own: OwnCode, pruned: PrunedModule, sizes: Mapping[str, Sizes]
) -> OwnCode:
    """Record which methods would read numbers that nobody can tell from widths."""
    proposals = Proposals(model, instance, sizes)
    edited = {edit.slot for edit in own.edits}
    found: dict[_Method, list[str]] = defaultdict(list)
    run: set[FunctionType] | None = None
    doubtful = [s for s, _ in proposals.first() if s.held < 2 and proposals.is_doubtful(s, s.read(model))]
    for slot in dict.fromkeys([*doubtful, *proposals.several]):
        if slot in edited:
            continue
        run = {*_run_by_forward(model)} if run is None else run
        for name, method in methods_that_name(model.get_submodule(slot.path), str(slot.keys[0])):
            if method not in run:
                found[slot.path, name].append(str(slot))
    for hit in _hit(instance, found, pruned) if found else ():
        del found[hit]
    return replace(own, unsure=tuple((path, name, listed(n)) for (path, name), n in found.items()))


def _run_by_forward(model: nn.Module) -> Iterator[FunctionType]:
    """List the methods that the `forward` of any module names, those of other modules too, and so on."""
    classes = dict.fromkeys(type(module) for module in model.modules())
    return called(model, [function for cls in classes for _, function in own_functions(cls)])


def _hit(
    instance: nn.Module, methods: Mapping[_Method, list[str]], pruned: PrunedModule
) -> Iterator[_Method]:
    """List those of some methods that the captured call runs, though no code names them."""
    example = seeded_noise(pruned.record.example, instance)
    left = [*methods]
    while not on_meta(instance):
        copied = structural_copy(instance, own_buffers)
        for path in dict.fromkeys(path for path, _ in left):
            names = [name for there, name in left if there == path]
            call_instead(copied.get_submodule(path), {name: partial(_raise, (path, name)) for name in names})
        given = example.map(Tensor.clone)
        try:
            with contextlib.suppress(Exception), torch.no_grad(), same_draws(instance):
                copied(*given.args, **given.kwargs)
        except _HitError as error:
            left.remove(error.method)
            yield error.method
        else:
            return


class _HitError(BaseException):
    """Says that a method was called: code that asks whether something fails does not hide it."""

    def __init__(self, method: _Method) -> None:
        super().__init__(method)
        self.method = method


def _raise(method: _Method, *args: object, **kwargs: object) -> None:
    """Raise _HitError."""
    raise _HitError(method)
