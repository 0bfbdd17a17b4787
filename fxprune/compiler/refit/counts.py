"""How much each place counts where a layer is solved: as predictions depend on what the layer gives there.

A class token is one place among hundreds, and in the last blocks all that is read.  A place counts as the
length of the derivative of the predictions by the layer's answer there; the least of them counts something,
for few samples say which matter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from fxprune.choose.importance.data import Batch
from fxprune.choose.importance.predictions import LogProbabilities, draws_for, predictions_of
from fxprune.compiler.refit.consumers import Consumer

__all__ = ["Counts", "counts_of"]

Counts = dict[str, list[Tensor]]  # by the layer's node, a batch each: as its answer, with 1 channel

LEAST = 0.1  # of the mean, that every place counts


def counts_of(
    module: fx.GraphModule,
    consumers: Sequence[Consumer],
    batches: Sequence[Batch],
    *,
    log_probabilities: LogProbabilities | None = None,
    step: Callable[[], Any],
) -> Counts:
    """Take the derivatives of the original's predictions in one run over the data; 1 on average."""
    running = _Answers(module, consumers, draws_for(sum(batch.size for batch in batches)))
    generator = torch.Generator().manual_seed(0)
    lengths: Counts = {consumer.node: [] for consumer in consumers}
    for batch in batches:
        for name, length in running.lengths(batch, log_probabilities, generator).items():
            lengths[name].append(length)
        step()
    return {name: _tempered(found) for name, found in lengths.items()}


def _tempered(lengths: list[Tensor]) -> list[Tensor]:
    mean = torch.cat([length.flatten() for length in lengths]).mean()
    if not bool(mean > 0) or not bool(mean.isfinite()):
        return [torch.ones_like(length) for length in lengths]
    return [LEAST + (1 - LEAST) * length / mean for length in lengths]


class _Answers(fx.Interpreter):
    """Runs the original; keeps what some layers give, for derivatives by it."""

    def __init__(self, module: fx.GraphModule, consumers: Sequence[Consumer], draws: int) -> None:
        super().__init__(module)
        self._draws = draws
        self._wanted = {consumer.node: consumer for consumer in consumers}
        self._answers: dict[str, Tensor] = {}

    def lengths(
        self, batch: Batch, log_probabilities: LogProbabilities | None, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Return the length of the derivative at every place of each layer's answer."""
        self._answers = {}
        with torch.enable_grad():
            prediction = predictions_of(self.run(*batch.args), batch.size, log_probabilities)
            answers, self._answers = self._answers, {}
            squares = {name: torch.zeros(()) for name in answers}
            for slopes in prediction.slopes(list(answers.values()), self._draws, generator):
                for name, slope in zip(answers, slopes, strict=True):
                    channel = self._wanted[name].channel(slope)
                    squares[name] = squares[name] + slope.float().square().sum(channel, keepdim=True)
        return {name: square.sqrt() for name, square in squares.items()}

    def run_node(self, n: fx.Node) -> Any:
        given = super().run_node(n)
        if n.name not in self._wanted:
            return given
        answer = given if given.requires_grad else given.detach().requires_grad_()
        self._answers[n.name] = answer
        return answer.clone()  # later nodes may write to it in place
