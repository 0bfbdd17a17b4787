"""Prove what an instance's code does in train mode alone, by a capture of the original in that mode.

The graph that an instance equals follows eval mode, where the original's code runs other operations to train.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fxprune.analysis.analysis import Analysis
from fxprune.analysis.analyze import AnalysisOptions, analyzed
from fxprune.capture.modes.follow import branches_on_mode
from fxprune.certify.comparison import same_draws
from fxprune.certify.float64 import Float64Interpreter, default_float64, doubled, in_double
from fxprune.certify.noise import drawn_alike
from fxprune.certify.relative_error import compare
from fxprune.compiler.native.barred import names_reached
from fxprune.compiler.native.coins import COINS, coin_on, tossing
from fxprune.compiler.native.combinations import choices
from fxprune.compiler.native.fingerprint import TOLERANCE
from fxprune.compiler.native.proposals import Options, Proposals
from fxprune.compiler.native.reads import Reads, reads_noted
from fxprune.compiler.native.same_plan import by_same_plan
from fxprune.compiler.native.scopes import Scope
from fxprune.compiler.native.sizes import Sizes
from fxprune.compiler.native.uncaptured import uncaptured
from fxprune.graph.classes import is_torchs, subclass_of
from fxprune.graph.copies import structural_copy
from fxprune.graph.example import Example, seeded_noise
from fxprune.graph.refuse_train_mode import refusing_nothing
from fxprune.graph.tensors import cuda_devices_of, floats_of, in_float64
from fxprune.result.own_code import Edit, OwnCode
from fxprune.result.pruned_module import PrunedModule

__all__ = ["always_training", "trained_alike", "trains_otherwise"]

_Graph = tuple[float | None, PrunedModule]  # of one side of every coin

TRIES = 64  # combinations of numbers that train mode alone reads


def trained_alike(
    model: nn.Module,
    analysis: Analysis,
    instance: nn.Module,
    own: OwnCode,
    pruned: PrunedModule,
    sizes: Mapping[str, Sizes],
    *,
    traced: bool,
) -> OwnCode:
    """Edit, in place, what train mode alone reads until an instance trains as the original's graph would.

    Returns the record with those edits; where none will do, with what is wrong, in words (`untrained`).

    traced: the instance's own graph is the pruned one, in train mode as well if that follows it.
    """
    chance = any("random" in names_reached(m) for m in model.modules() if branches_on_mode(m))
    captured = analysis.captured
    follows = not chance and captured.follows_mode and not captured.untrained
    if follows and traced:
        return own
    graphs = [(None, pruned)] if follows else _training_graphs(model, analysis, pruned, chance)
    trial = _trial(model, instance, graphs, pruned) if graphs else None
    if trial is None:
        double = in_float64(copy.deepcopy(instance))
        seen = _reads(double, _example(pruned, model), False)
        return replace(own, untrained=uncaptured(model, double, own, seen, sizes))
    if not trial.differs():
        return own
    options = trial.options(sizes, own)
    now = [slot.read(instance) for slot, _ in options]
    for values in itertools.islice(choices(options, now), TRIES):
        trial.write(options, values)
        if not trial.differs():
            return _edited(model, instance, own, options, values)
    return replace(own, untrained="its code computes something else there on the pruned sizes")


def trains_otherwise(model: nn.Module, instance: nn.Module, pruned: PrunedModule) -> bool:
    """Does an instance compute something else in train mode than a graph that follows it?"""
    trial = _trial(model, instance, [(None, pruned)], pruned)
    return trial is not None and trial.differs()


def _trial(
    model: nn.Module, instance: nn.Module, graphs: Sequence[_Graph], pruned: PrunedModule
) -> _Trial | None:
    """Try an instance beside graphs; None where those do not run in train mode.

    Where a batch is too small for a norm's statistics, with those that it has seen.
    """
    for still in (False, True):
        with contextlib.suppress(Exception):  # train mode may ask for more than the example holds
            return _Trial(model, instance, graphs, pruned, still=still)
    return None


def always_training(cls: type) -> Any:
    """Return a class whose code finds itself in train mode, whatever its layers are in."""
    return subclass_of(cls, {"training": property(lambda self: True, lambda self, mode: None)})


def _edited(
    model: nn.Module, instance: nn.Module, own: OwnCode, options: Options, values: Sequence[int]
) -> OwnCode:
    """Write numbers into an instance and its record; those of the original are no edits."""
    edits = {edit.slot: edit for edit in own.edits}
    for (slot, _), new in zip(options, values, strict=True):
        slot.write(instance, new)
        old = slot.read(model)
        edits.pop(slot, None)
        if new != old:
            edits[slot] = Edit(slot, old, new)
    return replace(own, edits=tuple(edits.values()))


class _Trial:
    """A float64 copy of an instance beside the graphs of the original's train mode."""

    def __init__(
        self,
        model: nn.Module,
        instance: nn.Module,
        graphs: Sequence[_Graph],
        pruned: PrunedModule,
        *,
        still: bool,
    ) -> None:
        self.model, self.instance, self.example = model, instance, _example(pruned, model)
        self.copy = in_float64(copy.deepcopy(instance))
        self.still = still  # norms of batches take what they have seen
        modes = _modes(self.copy, self.example, still)
        self.wanted = [(coin, _run_graph(graph, self.example, coin, still, modes)) for coin, graph in graphs]

    def differs(self) -> bool:
        for coin, wanted in self.wanted:
            try:
                got = _run(self.copy, self.example, coin, self.still)
            except Exception:  # whatever the code does with sizes that it did not expect
                return True
            if len(got) != len(wanted) or compare(wanted, got).error > TOLERANCE:
                return True
        return False

    def options(self, sizes: Mapping[str, Sizes], own: OwnCode) -> Options:
        """List the numbers that train mode reads and eval mode does not, and what they may be."""
        proposals, seen = Proposals(self.model, self.copy, sizes), _reads(self.copy, self.example, False)
        sides = [coin for coin, _ in self.wanted]
        found = proposals.options(Scope("", wide=True), _reads(self.copy, self.example, True, sides))
        known = {edit.slot: edit.old for edit in own.edits if isinstance(edit.old, int)}
        return [
            (slot, [*dict.fromkeys([*news, *([known[slot]] if slot in known else [])])])
            for slot, news in found
            if not seen.has(slot)
        ]

    def write(self, options: Options, values: Sequence[int]) -> None:
        for (slot, _), value in zip(options, values, strict=True):
            slot.write(self.copy, value)


def _reads(
    double: nn.Module, example: Example, training: bool, coins: Sequence[float | None] = (None,)
) -> Reads:
    reads, read = Reads(), copy.deepcopy(double).train(training)
    for coin in coins:
        with reads_noted(read, reads), contextlib.suppress(Exception):
            _called(read, example, coin)
    return reads


def _example(pruned: PrunedModule, model: nn.Module) -> Example:
    example = seeded_noise(pruned.record.example, model)
    return (example.with_batch(3) if pruned.record.dynamic else example).map(in_float64)


def _run(double: nn.Module, example: Example, coin: float | None, still: bool) -> list[Tensor]:
    """Call a copy of a float64 model in train mode."""
    return _called(_in_train_mode(copy.deepcopy(double), still), example, coin)


def _modes(double: nn.Module, example: Example, still: bool) -> dict[str, bool]:
    """Return the modes that layers are in after a call to train: a model's code may keep some in eval."""
    called = _in_train_mode(copy.deepcopy(double), still)
    with contextlib.suppress(Exception):  # whatever the code does with sizes that it did not expect
        _called(called, example, None)
    return {path: module.training for path, module in called.named_modules() if path}


def _in_train_mode(module: nn.Module, still: bool) -> nn.Module:
    module.train()
    for inner in module.modules() if still else ():
        if isinstance(inner, _BatchNorm):
            inner.eval()
    return module


def _called(double: nn.Module, example: Example, coin: float | None) -> list[Tensor]:
    args, kwargs = copy.deepcopy((example.args, example.kwargs))
    with torch.no_grad(), default_float64(), in_double(), _drawing(double), coin_on(coin):
        return floats_of(double(*args, **kwargs))


@contextlib.contextmanager
def _drawing(model: nn.Module) -> Iterator[None]:
    """Draw the same at each op, in what order code may come to them; the user's generators stay."""
    with same_draws(model), drawn_alike(cuda_devices_of(model)):
        yield


def _run_graph(
    graph: PrunedModule, example: Example, coin: float | None, still: bool, modes: Mapping[str, bool]
) -> list[Tensor]:
    double = doubled(graph)
    _in_train_mode(double, still)
    for path, module in double.named_modules():
        module.training = modes.get(path, module.training)
    with refusing_nothing(double), torch.no_grad(), default_float64(), _drawing(graph), coin_on(coin):
        return floats_of(Float64Interpreter(double).run_on(example))


def _training_graphs(
    model: nn.Module, analysis: Analysis, pruned: PrunedModule, chance: bool
) -> list[_Graph]:
    """Prune the graph of a model's train mode by the same plan; where chance decides, that of either side.

    chance: Python's random numbers may decide, which a capture does not see.  Empty where there is none.
    """
    ways = dict.fromkeys([analysis.captured.way, "symbolic"])  # torch.export sees no single number
    sides = (COINS[1:],) if chance else (COINS[:1], COINS[1:])
    words = (analysis.outputs, "prune")  # train mode may return what the plan shrinks
    for way, coins, outputs in itertools.product(ways, sides, words):
        options = replace(AnalysisOptions.of(analysis), capture=way, outputs=outputs)
        try:
            return [(coin, _training_graph(model, analysis, pruned, options, coin)) for coin in coins]
        except Exception:  # train mode may do what can't be captured, or what the plan does not fit
            continue
    return []


def _training_graph(
    model: nn.Module,
    analysis: Analysis,
    pruned: PrunedModule,
    options: AnalysisOptions,
    coin: float | None,
) -> PrunedModule:
    trained = structural_copy(model)
    for module in trained.modules():
        if branches_on_mode(module) and not is_torchs(module):
            module.__class__ = always_training(type(module))
    if coin is not None:
        trained.__class__ = tossing(type(trained), coin)
    found = analyzed(trained, analysis.captured.example, options)
    return by_same_plan(trained, found, pruned)
