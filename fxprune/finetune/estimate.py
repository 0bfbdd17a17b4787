"""What a run would take: a few batches on a copy, timed, and what they hold in memory."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from fxprune.finetune.distill import distill
from fxprune.finetune.loader import length_of
from fxprune.finetune.loss import TaskLoss
from fxprune.finetune.training import Training

__all__ = ["Estimate", "estimate"]

TRIED = 3  # batches


@dataclass(frozen=True)
class Estimate:
    """What a run would take on this machine.

    batches: of an epoch.  seconds: of the whole run, without what `evaluate` takes.
    memory: bytes, of weights, gradients, the optimiser's state and averages, the teacher, and what a batch
        leaves for the backward pass; on a GPU the most that was in use.
    """

    batches: int
    seconds: float
    memory: int

    def __str__(self) -> str:
        minutes, seconds = divmod(round(self.seconds), 60)
        time = (
            f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min {seconds:02d} s"
        )
        return f"{self.batches} batches an epoch; about {time}, {self.memory / 2**20:,.0f} MiB of memory"


def estimate(
    student: nn.Module,
    teacher: nn.Module | None,
    batches: Iterable[Any],
    training: Training | None = None,
    *,
    loss: TaskLoss | None = None,
) -> Estimate:
    """Estimate a run of `distill`; the student stays as it is, and nothing is written.

    Raises:
        FxpruneError: what the run itself would raise on its first batches.
    """
    training = training or Training()
    count = length_of(batches)
    short = replace(training, epochs=2, warmup=0.0)
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    tried = copy.deepcopy(student)
    held = _Held()
    with torch.autograd.graph.saved_tensors_hooks(held.keep, _same):
        trained = distill(
            tried, teacher, _First(batches, min(count, TRIED)), short, loss=loss, progress=False
        )
    if on_gpu:
        memory = torch.cuda.max_memory_allocated()
    else:
        states = 2 if "adam" in training.opt.lower() else 1
        weights = _bytes(student) * (2 + states + (training.ema > 0))
        memory = weights + (0 if teacher is None else _bytes(teacher)) + held.total // (2 * min(count, TRIED))
    seconds = trained.log[-1]["seconds"] / min(count, TRIED) * count * training.epochs
    return Estimate(count, seconds, memory)


class _First:
    """The first of some batches."""

    def __init__(self, batches: Iterable[Any], count: int) -> None:
        self.batches, self.count = batches, count

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Any]:
        return itertools.islice(iter(self.batches), self.count)


class _Held:
    """Counts the bytes that are kept for backward passes, each memory once a pass."""

    def __init__(self) -> None:
        self.total = 0

    def keep(self, tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            self.total += tensor.numel() * tensor.element_size()
        return tensor


def _same(tensor: Tensor) -> Tensor:
    return tensor


def _bytes(model: nn.Module) -> int:
    return sum(t.numel() * t.element_size() for t in [*model.parameters(), *model.buffers()])
