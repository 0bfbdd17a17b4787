"""What a run would take: some batches on a copy, timed, and the most memory held meanwhile."""

from __future__ import annotations

import contextlib
import copy
import itertools
import resource
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fxprune.finetune.distill import distill
from fxprune.finetune.loader import length_of
from fxprune.finetune.loss import TaskLoss
from fxprune.finetune.schedule import refuse_idle_numbers
from fxprune.finetune.training import Training

__all__ = ["Estimate", "estimate"]

WARM_UP, FEWEST, MOST = 2, 4, 24  # batches: not counted; the range of those timed
SECONDS = 15.0  # for those that are timed


@dataclass(frozen=True)
class Estimate:
    """What a run would take on this machine, as busy as it is now.

    batches: of an epoch.  tried: how many of them were timed.
    seconds: of the whole run; at_least, at_most: were every batch as quick as the quicker ones that were
        timed, or as slow as the slower ones (the tenth and the ninetieth of a hundred).
    memory: bytes: the most that this process held, all included; on a GPU, the most that was in use there.
        Processes that read data have their own.
    """

    batches: int
    tried: int
    seconds: float
    at_least: float
    at_most: float
    memory: int

    def and_then(self, other: Estimate) -> Estimate:
        """Return what this run and another after it take, whose epochs are as long."""
        return Estimate(
            self.batches,
            self.tried + other.tried,
            self.seconds + other.seconds,
            self.at_least + other.at_least,
            self.at_most + other.at_most,
            max(self.memory, other.memory),
        )

    def __str__(self) -> str:
        return (
            f"{self.batches} batches an epoch; about {_time(self.seconds)}, {_time(self.at_least)} to "
            f"{_time(self.at_most)} by {self.tried} batches that were tried; "
            f"{self.memory / 2**20:,.0f} MiB of memory"
        )


def estimate(
    student: nn.Module,
    teacher: nn.Module | None,
    batches: Iterable[Any],
    training: Training | None = None,
    *,
    loss: TaskLoss | None = None,
    judging: float = 0.0,
) -> Estimate:
    """Estimate a run of `distill`; the student stays as it is, and nothing is written.

    Args:
        student, teacher, batches, training, loss: as of `distill`.
        judging: the seconds that `evaluate` takes after each epoch.

    Raises:
        FxpruneError: what the run itself would raise on its first batches.
    """
    training = training or Training()
    count = length_of(batches)
    usual = Training()  # a short run's own: the learning rate takes no time
    short = replace(training, epochs=1, warmup=0.0, sched=usual.sched, min_lr=usual.min_lr)
    tried = copy.deepcopy(student)
    _forget_peak()

    def run(some: int) -> list[float]:
        timed = _Timed(batches, some)
        distill(tried, teacher, timed, short, loss=loss, progress=False)
        return timed.seconds

    first = run(WARM_UP + 1)[-1]
    refuse_idle_numbers(training)
    number = min(MOST, max(FEWEST, int(SECONDS / first)))
    # One batch is read ahead, and the first one trained on makes the optimiser's state.
    seconds = run(number + 2)[2:]
    memory = _peak() - (0 if torch.cuda.is_available() else _bytes(student))  # the run trains no copy
    total, low, high = (
        (value * count + judging) * training.epochs
        for value in (float(np.mean(seconds)), *np.quantile(seconds, (0.1, 0.9)).tolist())
    )
    return Estimate(count, len(seconds), total, min(low, total), max(high, total), memory)


class _Timed:
    """The first of some batches, once more from the start where there are fewer; and how long each took.

    seconds: from the reading of each batch to that of the next, which comes after the training on it.
    """

    def __init__(self, batches: Iterable[Any], count: int) -> None:
        self.batches, self.count = batches, count
        self.seconds: list[float] = []

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Any]:
        again = itertools.chain.from_iterable(self._passes())
        began = time.perf_counter()
        for batch in itertools.islice(again, self.count):
            yield batch
            now = time.perf_counter()
            self.seconds.append(now - began)
            began = now

    def _passes(self) -> Iterator[Iterable[Any]]:
        """Yield the batches again and again, as long as there are any."""
        read = -1
        while read != len(self.seconds):  # else the last pass had none
            read = len(self.seconds)
            yield self.batches


def _forget_peak() -> None:
    """Count the most memory from here on, where the system can."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError):  # else it is the most since the process began
        Path("/proc/self/clear_refs").write_text("5")


def _peak() -> int:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024


def _bytes(model: nn.Module) -> int:
    return sum(t.numel() * t.element_size() for t in [*model.parameters(), *model.buffers()])


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min {rest:02d} s"
