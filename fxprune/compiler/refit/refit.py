"""Solve again, in closed form, the layers that read what was narrowed."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from fxprune.analysis.analysis import Analysis
from fxprune.choose.importance.answers import Lengths, derivatives_of, is_known
from fxprune.choose.importance.bars import hidden
from fxprune.choose.importance.held_out import Split, split_data
from fxprune.choose.importance.predictions import LogProbabilities
from fxprune.choose.importance.reading import Reading, reading_of
from fxprune.choose.planned import as_planned
from fxprune.compiler.refit.consumers import Consumer, consumers_of
from fxprune.compiler.refit.regression import MIDDLE, RIDGES, Solution, solved
from fxprune.compiler.refit.walk import Pair, Sides
from fxprune.graph.source_files import users_level
from fxprune.result.forms import graph_form, with_record
from fxprune.result.pruned_module import plan_of
from fxprune.result.refitted import FEW, Refit
from fxprune.result.selection import Selection

__all__ = ["refit"]

WORSE = "with it, predictions on held-out data came no nearer to the original's"
NO_GAIN = "its error on held-out data did not fall"
ONE_SAMPLE = "there is one sample only, and none to choose by"


def refit(
    analysis: Analysis,
    result: nn.Module,
    data: Iterable[Any] | None,
    *,
    lengths: Lengths | None = None,
    log_probabilities: LogProbabilities | None = None,
    progress: bool = True,
    join: bool = True,
) -> nn.Module:
    """Solve every layer that reads a shrunk axis again, in place, and record which.

    One after the other, for the first change what the others read: each on what it reads in the result, for
    what is kept of what it gave in the original, and what the stream lacks by then to which that is added.
    Layers that write to a shrunk stream are solved as well, and the last ones, that answer for all of them.
    Where predictions on held-out samples come no nearer to the original's, everything keeps its slice.

    Args:
        analysis: of the original, or of the graph that the plan's groups are of.
        result: what `rewrite` made of it, in either form.
        data: calibration batches; labels are not looked at.
        lengths: of derivatives by layers' answers on the same data, where they are known already.
        join: make more images of few, see `joined`.

    Returns:
        The result.

    Raises:
        DataError: there is no data, or a batch is nothing that the model takes.
    """
    plan, pruned = plan_of(result), graph_form(result)
    analysis = as_planned(analysis, plan)
    selection = Selection.from_plan(analysis, plan)
    consumers = consumers_of(analysis, selection)
    calibration = split_data(data, analysis, "refit", join=join)
    samples = sum(batch.size for batch in calibration.given)
    if samples < FEW:
        warnings.warn(
            f"data= has {samples} samples: layers are solved again on few of them, each only as far as "
            f"it helps on those held out; give {FEW} or more",
            stacklevel=users_level(),
        )
    readers = {c.node for c in consumers.solved if c.shrunk}
    done = _Outcome()
    if consumers.solved and not calibration.held:
        done = _Outcome(left=dict.fromkeys(readers, ONE_SAMPLE))
    elif consumers.solved:
        sides = Sides(analysis, selection, pruned)
        read = reading_of(analysis, log_probabilities)
        moments = _moments(sides, consumers.solved, calibration, lengths, read, progress)
        divergence = partial(sides.divergence, calibration.held, read)
        done = _solve(sides, consumers.solved, moments, divergence)
    names = {consumer.node: consumer.weight for consumer in consumers.solved}
    plan = replace(
        plan,
        refit={**plan.refit, **done.found},
        unfitted={names.get(node, node): why for node, why in (*consumers.left.items(), *done.left.items())},
        samples=samples,
        divergence=done.divergence,
    )
    return with_record(result, lambda record: replace(record, plan=plan))


@dataclass(frozen=True)
class _Outcome:
    """What solving layers again came to.

    found: what was done, by tensor.
    left: layers that read a shrunk axis and keep their slices, each with why.
    divergence: from the original on held-out samples, before and after; empty where nothing was tried.
    """

    found: Mapping[str, Refit] = field(default_factory=dict)
    left: Mapping[str, str] = field(default_factory=dict)
    divergence: tuple[float, ...] = ()


def _solve(
    sides: Sides,
    consumers: Sequence[Consumer],
    moments: Iterable[tuple[Consumer, Pair]],
    divergence: Callable[[], float],
) -> _Outcome:
    """Solve layers again, in place, one after the other; put all slices back where that helps none.

    moments: of each layer in turn, once those before it are solved.
    divergence: of predictions on held-out data, as layers are by then.
    """
    readers = {c.node for c in consumers if c.shrunk}
    found: dict[str, Refit] = {}
    left: dict[str, str] = {}
    own_tensors = (t for c in consumers for t in (sides.weight(c), sides.bias(c)) if t is not None)
    slices = [(t, t.detach().clone()) for t in own_tensors]
    ridges: dict[torch.Size, float] = {}  # the last of every shape: layers alike take much the same
    before = divergence()
    for consumer, (seen, held) in moments:
        weight, bias = sides.matrix(consumer, len(seen.x))
        alike = weight.shape
        solution = solved(
            seen, held, weight, bias, free_bias=consumer.bias is not None, start=ridges.get(alike, MIDDLE)
        )
        if solution is not None:
            if solution.ridge in RIDGES:
                ridges[alike] = solution.ridge
            found |= _stored(sides, consumer, solution)
        elif consumer.shrunk:
            left[consumer.node] = NO_GAIN
    left |= {node: why for node, why in sides.refused.items() if node in readers}
    after = divergence() if found else before
    if not found or after < before:
        return _Outcome(found, left, (before, after))
    with torch.no_grad():
        for tensor, slice_ in slices:
            tensor.copy_(slice_)
    return _Outcome({}, left | dict.fromkeys(readers, WORSE), (before, before))


def _moments(
    sides: Sides,
    consumers: Sequence[Consumer],
    data: Split,
    lengths: Lengths | None,
    read: Reading,
    progress: bool,
) -> Iterator[tuple[Consumer, Pair]]:
    """Give each layer with its moments, to be solved before the next, under a progress bar."""
    channels = {consumer.node: -1 - consumer.kernel for consumer in consumers}
    known = lengths or {}
    complete = all(is_known(known, node, data.all) for node in channels)
    total = len(data.all) * (len(consumers) + (not complete))
    with tqdm(total=total, desc="re-fit", unit="batch", disable=hidden(progress)) as bar:
        if not complete:
            known = derivatives_of(sides.dense, channels, data.all, read=read, step=bar.update).lengths
        yield from sides.moments(consumers, data, lengths=known, step=bar.update)


def _stored(sides: Sides, consumer: Consumer, solution: Solution) -> dict[str, Refit]:
    """Write a solution into the result, in its dtype; returns what was done, by tensor."""
    stored = {}
    for name, value in ((consumer.weight, solution.weight), (consumer.bias, solution.bias)):
        if name is None or (name == consumer.weight and solution.ridge == float("inf")):
            continue
        tensor = sides.weight(consumer) if name == consumer.weight else sides.bias(consumer)
        assert isinstance(tensor, Tensor)
        with torch.no_grad():
            tensor.copy_(value.reshape(tensor.shape))
        stored[sides.new_name(name)] = Refit.of(tensor, solution.ridge, solution.before, solution.after)
    return stored
