"""How much each place counts where a layer is solved: as predictions depend on what the layer gives there.

A class token is one place among hundreds, and in the last blocks all that is read.  A place counts as the
length of the derivative of the predictions by the layer's answer there; the least of them counts something,
for few samples say which matter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from fxprune.analysis.analysis import Analysis
from fxprune.choose.importance.data import Batch
from fxprune.choose.importance.predictions import LogProbabilities, draws_for, predictions_of
from fxprune.rules.calls import weight_name
from fxprune.rules.contractions import conv_axes, linear_axes

__all__ = ["SOLVED", "Lengths", "Watched", "channels_of", "counts_of", "is_known", "lengths_of"]

SOLVED = (linear_axes, conv_axes)  # rules of what is solved
LEAST = 0.1  # of the mean, that every place counts

# Of the derivative by a layer's answer, by the numbers of a batch's samples and the layer's node.
Lengths = dict[tuple[int, ...], dict[str, Tensor]]


def channels_of(analysis: Analysis) -> dict[str, int]:
    """Return the dimension of channels, from the end, of what each layer with a weight of its own gives."""
    found = {}
    for node, step in analysis.steps.items():
        weight = weight_name(step.bound.get("weight"))
        if step.rule is not None and step.rule.function in SOLVED and weight is not None:
            kernel = 0 if step.rule.function is linear_axes else len(analysis.weights[weight]) - 2
            found[node.name] = -1 - kernel
    return found


def lengths_of(
    module: fx.GraphModule,
    channels: Mapping[str, int],
    batches: Sequence[Batch],
    *,
    log_probabilities: LogProbabilities | None = None,
    step: Callable[[], Any],
) -> Lengths:
    """Take the derivatives of the original's predictions in one run over the data.

    Args:
        channels: of the layers that are asked about, as of `channels_of`.
        step: called after each batch.
    """
    draws = draws_for(sum(batch.size for batch in batches))
    running = _Answers(module, channels)
    generator = torch.Generator().manual_seed(0)
    found: Lengths = {}
    for batch in batches:
        with torch.enable_grad():
            prediction = predictions_of(running.run(*batch.args), batch.size, log_probabilities)
            answers = running.watched.taken()
            for slopes in prediction.slopes(list(answers.values()), draws, generator):
                running.watched.add(dict(zip(answers, slopes, strict=True)))
        found[batch.numbers] = running.watched.lengths()
        step()
    return found


def is_known(lengths: Lengths, node: str, batches: Sequence[Batch]) -> bool:
    """Are there lengths by a layer's answer for all of some batches?"""
    return all(node in lengths.get(batch.numbers, {}) for batch in batches)


def counts_of(lengths: Lengths, node: str, batches: Sequence[Batch]) -> list[Tensor]:
    """Return how much each place of a layer's answer counts, 1 on average: a batch each, with 1 channel."""
    found = [lengths[batch.numbers][node] for batch in batches]
    mean = torch.cat([length.flatten() for length in found]).mean()
    if not bool(mean > 0) or not bool(mean.isfinite()):
        return [torch.ones_like(length) for length in found]
    return [LEAST + (1 - LEAST) * length / mean for length in found]


class Watched:
    """What some layers give for the batch at hand, and the squared lengths of derivatives by it."""

    def __init__(self, channels: Mapping[str, int]) -> None:
        self._channels = channels
        self._answers: dict[str, Tensor] = {}
        self._squares: dict[str, Tensor] = {}

    def watch(self, node: fx.Node, given: Any) -> Any:
        """Return what a node gives, where derivatives by it are taken: later nodes may write to it."""
        if node.name not in self._channels:
            return given
        answer = given if given.requires_grad else given.detach().requires_grad_()
        self._answers[node.name] = answer
        return answer.clone()

    def taken(self) -> dict[str, Tensor]:
        """Return the answers of this batch, by node."""
        answers, self._answers = self._answers, {}
        return answers

    def add(self, slopes: Mapping[str, Tensor]) -> None:
        """Add derivatives by the answers, by node."""
        for name, slope in slopes.items():
            square = slope.float().square().sum(self._channels[name], keepdim=True)
            self._squares[name] = self._squares[name] + square if name in self._squares else square

    def lengths(self) -> dict[str, Tensor]:
        """Return the length at every place of each answer, and start anew."""
        squares, self._squares = self._squares, {}
        return {name: square.sqrt() for name, square in squares.items()}


class _Answers(fx.Interpreter):
    """Runs the original; keeps what some layers give, for derivatives by it."""

    def __init__(self, module: fx.GraphModule, channels: Mapping[str, int]) -> None:
        super().__init__(module)
        self.watched = Watched(channels)

    def run_node(self, n: fx.Node) -> Any:
        return self.watched.watch(n, super().run_node(n))
