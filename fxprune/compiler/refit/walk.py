"""Run the original and the result side by side over calibration data, layer by layer, for moments."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, fx

from fxprune.analysis.analysis import Analysis
from fxprune.certify.float64 import in_eval_mode
from fxprune.choose.importance.answers import Lengths, counts_of
from fxprune.choose.importance.data import Batch
from fxprune.choose.importance.held_out import Split
from fxprune.choose.importance.reading import Reading
from fxprune.compiler.refit.additions import Between, as_answer, between
from fxprune.compiler.refit.consumers import Consumer
from fxprune.compiler.refit.lockstep import Lockstep
from fxprune.compiler.refit.regression import PairMoments
from fxprune.graph.copies import structural_copy
from fxprune.graph.tensors import tensor_at
from fxprune.result.pruned_module import PrunedModule
from fxprune.result.selection import Selection
from fxprune.rules.registry import Axes

__all__ = ["Pair", "Sides"]

CHECKED = 64  # places, at most, at which a layer's answer is compared with what its weight says

Pair = tuple[PairMoments, PairMoments]  # of the samples that are solved from, and of those held out


class Sides:
    """The original and the result, in eval mode, on the tensors that they have."""

    def __init__(self, analysis: Analysis, selection: Selection, pruned: PrunedModule) -> None:
        self.analysis, self.selection, self.pruned = analysis, selection, pruned
        self.renamed = pruned.record.plan.renamed
        self.dense, self._small = (_for_eval(m) for m in (analysis.module, pruned))
        self.refused: dict[str, str] = {}
        self.checked: set[str] = set()
        self._between: dict[str, Between] = {}

    def moments(
        self,
        consumers: Sequence[Consumer],
        data: Split,
        *,
        lengths: Lengths,
        step: Callable[[], Any],
    ) -> Iterator[tuple[Consumer, Pair]]:
        """Collect moments of what each consumer reads in the result, and of what it should give there.

        That is what is kept of what it gave in the original, and what the stream lacks to which it is added.
        A consumer is to be solved before the next one is asked for: that reads what the solved ones give.

        Args:
            lengths: that places count by.
        """
        dense, small = (Lockstep(module, data.all) for module in (self.dense, self._small))
        for consumer in consumers:
            pair = (PairMoments(), PairMoments())
            counts = counts_of([lengths[batch.numbers][consumer.node] for batch in data.all])
            runs = zip(small.read(consumer.node), dense.given(consumer.node), counts, strict=True)
            for i, (x, (dense_x, y), counted) in enumerate(runs):
                self._check(consumer, dense_x, y)
                if consumer.node not in self.refused:
                    read = consumer.vectors(x, self.weight(consumer))
                    wanted = self._wanted(consumer, y, len(read), dense, small)
                    places = self._kept(counted, consumer.given, but=consumer.channel(counted)).flatten()
                    pair[i >= len(data.all) - len(data.held)].add(read, wanted, places)  # held out: the last
                step()
            if consumer.node not in self.refused:
                yield consumer, pair

    def divergence(self, batches: Sequence[Batch], read: Reading) -> float:
        """Return how far the result's predictions are from the original's, for the mean sample.

        Of outputs that shrink too, what is left counts.
        """
        total = 0.0
        with torch.no_grad():
            for batch in batches:
                dense, small = (fx.Interpreter(m).run(*batch.arguments()) for m in (self.dense, self._small))
                wanted, given = read(dense, batch.size, self._kept), read(small, batch.size)
                total += float(wanted.divergence(given).double().sum())
        return total / sum(batch.size for batch in batches)

    def new_name(self, name: str) -> str:
        """Return the name that one of the original's tensors has in the result."""
        return self.renamed.get(name, name)

    def weight(self, consumer: Consumer) -> Tensor:
        return tensor_at(self.pruned, self.new_name(consumer.weight))

    def bias(self, consumer: Consumer) -> Tensor | None:
        return None if consumer.bias is None else tensor_at(self.pruned, self.new_name(consumer.bias))

    def matrix(self, consumer: Consumer, groups: int) -> tuple[Tensor, Tensor]:
        """Return the result's weight [groups, o, k] and bias [groups, o], in float64."""
        weight, bias = self.weight(consumer).detach().double(), self.bias(consumer)
        weight = weight.reshape(groups, len(weight) // groups, -1)
        zeros = torch.zeros(weight.shape[:2], dtype=torch.float64, device=weight.device)
        return weight, zeros if bias is None else bias.detach().double().reshape(groups, -1)

    def _wanted(self, consumer: Consumer, y: Tensor, groups: int, dense: Lockstep, small: Lockstep) -> Tensor:
        """Return what the result's layer should give for the batch at hand: [groups, places, outputs]."""
        kept = self._kept(y, consumer.given)
        wanted = consumer.answers(kept, groups) * self._factor(consumer, groups)
        if (addition := consumer.addition) is None:
            return wanted

        def way(answer: Tensor) -> Tensor:
            return cast(Tensor, small.value(addition.ends, {consumer.node: answer}))

        if consumer.node not in self._between:
            self._between[consumer.node] = between(way, kept)
        if self._between[consumer.node] is Between.OTHER:
            return wanted
        lacking = self._kept(dense.value(addition.stream), addition.axes) - small.value(addition.stream)
        if self._between[consumer.node] is Between.SCALES:
            lacking = as_answer(way, lacking, kept)
        return wanted + consumer.answers(lacking, groups)

    def _check(self, consumer: Consumer, x: Tensor, y: Tensor) -> None:
        """Refuse a layer of the original that gives something else than what the regression takes it to."""
        if consumer.node in self.checked:
            return
        self.checked.add(consumer.node)
        weight = tensor_at(self.dense, consumer.weight).detach()
        read = consumer.vectors(x, weight)
        given = consumer.answers(y, len(read))
        spread = slice(None, None, 1 + read.shape[1] // CHECKED)
        read, given = read[:, spread].double(), given[:, spread].double()
        off = read @ weight.double().reshape(len(read), given.shape[-1], -1).mT - given
        if consumer.bias is not None:
            off = off + tensor_at(self.dense, consumer.bias).double().reshape(len(read), 1, -1)
        if not bool(off.square().mean().sqrt() <= 0.05 * given.square().mean().sqrt() + 1e-12):
            self.refused[consumer.node] = "it computes more than its weight says"

    def _factor(self, consumer: Consumer, groups: int) -> Tensor | float:
        """Return what was folded into rows of the weight: the original's answers lack it."""
        folded = self.pruned.folded.get(self.new_name(consumer.weight))
        if folded is None:
            return 1.0
        weight = self.weight(consumer)
        factors = torch.ones(len(weight), device=weight.device)
        factors[folded[0].to(weight.device)] = folded[1]
        return factors.reshape(groups, 1, -1)

    def _kept(self, t: Tensor, axes: Axes, *, but: int | None = None) -> Tensor:
        """Select what is kept of one of the original's values, along all dimensions but one."""
        for dim, axis in enumerate(axes):
            positions = self.selection.positions(axis) if dim != but else None
            if positions is not None:
                first, count = int(positions[0]), len(positions)
                if positions[-1] - first == count - 1:  # as in a basis: a view
                    t = t.narrow(dim, first, count)
                else:
                    t = t.index_select(dim, torch.from_numpy(positions).to(t.device))
        return t


def _for_eval(module: fx.GraphModule) -> fx.GraphModule:
    copied = cast(fx.GraphModule, structural_copy(module))
    in_eval_mode(copied)
    return copied
