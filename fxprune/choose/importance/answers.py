"""How predictions depend on what each layer gives: how much its places count, and its directions.

A class token is one place among hundreds, and in the last blocks all that is read.  A place counts as the
length of the derivative of the predictions by the layer's answer there; the least of them counts something,
for few samples say which matter.  An error along a direction of the answer costs what the second moment of
that derivative says.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, fx

from fxprune.analysis.analysis import Analysis
from fxprune.choose.importance.data import Batch
from fxprune.choose.importance.gram import gram
from fxprune.choose.importance.predictions import Prediction, draws_for
from fxprune.choose.importance.reading import Reading
from fxprune.choose.importance.soft_masks import Differentiable
from fxprune.graph.tensors import at_least_float32
from fxprune.rules.calls import weight_name
from fxprune.rules.contractions import conv_axes, linear_axes

__all__ = [
    "SOLVED",
    "Derivatives",
    "Lengths",
    "Watched",
    "channels_of",
    "counts_of",
    "derivatives_of",
    "is_known",
    "take_slopes",
]

SOLVED = (linear_axes, conv_axes)  # rules of the layers that the re-fit solves again
LEAST = 0.1  # what every place counts at least, where the mean counts 1

# Of the derivative by a layer's answer, at every place (channels: 1): `Batch.numbers` -> node -> lengths.
Lengths = dict[tuple[int, ...], dict[str, Tensor]]


@dataclass(frozen=True)
class Derivatives:
    """Derivatives of the predictions by layers' answers.

    lengths: at every place.
    moments: second moment over channels, summed over places, for the mean sample: float64 [o, o] by node.
    """

    lengths: Lengths = field(default_factory=dict)
    moments: dict[str, Tensor] = field(default_factory=dict)


def channels_of(analysis: Analysis) -> dict[str, int]:
    """Return the dimension of channels, from the end, of what each layer with a weight of its own gives."""
    found = {}
    for node, step in analysis.steps.items():
        weight = weight_name(step.bound.get("weight"))
        if step.rule is not None and step.rule.function in SOLVED and weight is not None:
            kernel = 0 if step.rule.function is linear_axes else len(analysis.weights[weight]) - 2
            found[node.name] = -1 - kernel
    return found


def derivatives_of(
    module: fx.GraphModule,
    channels: Mapping[str, int],
    batches: Sequence[Batch],
    *,
    squared: Collection[str] = (),
    draws: int | None = None,
    seed: int = 0,
    read: Reading | None = None,
    step: Callable[[], Any],
) -> Derivatives:
    """Take the derivatives of the original's predictions in one run over the data.

    Args:
        channels: of the layers that are asked about, as of `channels_of`.
        squared: those whose second moments are wanted as well.
        draws: derivatives taken per sample.  By default as of `draws_for`.
        read: reads the outputs; by default as having their samples first.
        step: called after each batch.
    """
    draws = draws or draws_for(sum(batch.size for batch in batches))
    runner = _Answers(module, channels, squared)
    return take_slopes(runner, batches, draws, seed, read or Reading(), step)


def take_slopes(
    runner: Runner,
    batches: Sequence[Batch],
    draws: int,
    seed: int,
    read: Reading,
    step: Callable[[], Any],
) -> Derivatives:
    """Run a graph over the data, and add up derivatives of its predictions, `draws` per sample."""
    generator = torch.Generator().manual_seed(seed)
    lengths: Lengths = {}
    for batch in batches:
        with torch.enable_grad():
            prediction = read(runner.run_on(batch), batch.size)
            lengths[batch.numbers] = runner.add_slopes(prediction, draws, generator)
        step()
    return Derivatives(lengths, runner.watched.moments(draws * sum(batch.size for batch in batches)))


def is_known(lengths: Lengths, node: str, batches: Sequence[Batch]) -> bool:
    """Are the lengths by a layer's answer known for each of some batches?"""
    return all(node in lengths.get(batch.numbers, {}) for batch in batches)


def counts_of(lengths: Sequence[Tensor]) -> list[Tensor]:
    """Return how much each place of a layer's answer counts, 1 on average, by its lengths of every batch."""
    mean = torch.cat([length.flatten() for length in lengths]).mean()
    if not bool(mean > 0) or not bool(mean.isfinite()):
        return [torch.ones_like(length) for length in lengths]
    return [LEAST + (1 - LEAST) * length / mean for length in lengths]


class Watched:
    """What some layers give for the batch at hand, and sums over derivatives by it.

    squared: the layers whose second moments are wanted, beside the lengths of all.
    """

    def __init__(self, channels: Mapping[str, int], squared: Collection[str] = ()) -> None:
        self._channels, self._squared = channels, squared
        self._answers: dict[str, Tensor] = {}
        self._squares: dict[str, Tensor] = {}
        self._moments: dict[str, Tensor] = {}

    def watch(self, node: fx.Node, given: Any) -> Any:
        """Keep what a watched layer gives, for derivatives by it; return a copy: later nodes may write."""
        if node.name not in self._channels:
            return given
        answer = given if given.requires_grad else given.detach().requires_grad_()
        self._answers[node.name] = answer
        return answer.clone()

    def taken(self) -> dict[str, Tensor]:
        """Return the answers of this batch, by node, and forget them."""
        answers, self._answers = self._answers, {}
        return answers

    def add(self, slopes: Mapping[str, Tensor]) -> None:
        """Add one draw's derivatives by the answers, by node, to the sums."""
        for name, slope in slopes.items():
            slope, channel = at_least_float32(slope), self._channels[name]
            square = slope.square().sum(channel, keepdim=True)
            self._squares[name] = self._squares[name] + square if name in self._squares else square
            if name in self._squared:
                moment = gram(slope.movedim(channel, -1).flatten(0, -2)).double()
                self._moments[name] = self._moments[name] + moment if name in self._moments else moment

    def lengths(self) -> dict[str, Tensor]:
        """Return the length at every place of each answer, and start anew."""
        squares, self._squares = self._squares, {}
        return {name: square.sqrt() for name, square in squares.items()}

    def moments(self, derivatives: int) -> dict[str, Tensor]:
        """Return the second moments over all batches: sums over as many derivatives as were taken."""
        return {name: moment / derivatives for name, moment in self._moments.items()}


class Runner(Protocol):
    """Runs a graph on batches; adds up derivatives of a prediction by what it gave for the last one.

    `add_slopes` returns the length of those by each layer's answer, at every place.
    """

    watched: Watched

    def run_on(self, batch: Batch) -> Any: ...

    def add_slopes(
        self, prediction: Prediction, draws: int, generator: torch.Generator
    ) -> dict[str, Tensor]: ...


class _Answers(Differentiable):
    """Runs the original; keeps what some layers give, for derivatives by it."""

    def __init__(self, module: fx.GraphModule, channels: Mapping[str, int], squared: Collection[str]) -> None:
        super().__init__(module)
        self.watched = Watched(channels, squared)

    def run_node(self, n: fx.Node) -> Any:
        return self.watched.watch(n, super().run_node(n))

    def run_on(self, batch: Batch) -> Any:
        return self.run(*batch.arguments())

    def add_slopes(self, prediction: Prediction, draws: int, generator: torch.Generator) -> dict[str, Tensor]:
        answers = self.watched.taken()
        for slopes in prediction.slopes(list(answers.values()), draws, generator):
            self.watched.add(dict(zip(answers, slopes, strict=True)))
        return self.watched.lengths()
