"""The loop: epochs of batches, from wherever the last checkpoint stands, to the trained student."""

from __future__ import annotations

import contextlib
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import IterableDataset
from tqdm import tqdm

from fxprune.choose.importance.bars import hidden
from fxprune.errors import DataError, TrainingError
from fxprune.finetune.checkpoints import Checkpoints, Progress
from fxprune.finetune.engine import Engine
from fxprune.finetune.loss import Distillation, Losses
from fxprune.graph.modes import in_eval_mode

__all__ = ["Evaluate", "Loop", "own_randomness"]

Evaluate = Callable[[nn.Module], Mapping[str, float]]
TOTAL = "loss"  # what the log calls the weighted sum
_ENDED = object()
READING, TRAINING = 0, 1  # last in a seed: of what is drawn while a batch is read, or trained on


@dataclass(frozen=True)
class Loop:
    """One run.

    every: a checkpoint after so many batches, beside those at the end of each epoch; 0 for no others.
    bar: show how far an epoch has come.
    """

    engine: Engine
    distillation: Distillation
    checkpoints: Checkpoints
    evaluate: Evaluate | None
    every: int
    bar: bool

    def run(self, progress: Progress) -> Progress:
        """Train from `progress` to the last epoch.

        Raises:
            TrainingError: a loss or a gradient is not finite, or a loss of labels was asked for and there
                are none.
            DataError: there are fewer batches than their length says.
        """
        self.checkpoints.write_log(progress)
        if self.checkpoints.last is not None:
            self.checkpoints.restore()
        while progress.epoch < self.engine.training.epochs:
            progress = self._epoch(progress)
            if self.evaluate is not None:
                self.checkpoints.write(progress)  # what the user's function does is not known
            progress = self._finished(progress)
            self.checkpoints.write(progress)
            self.checkpoints.write_log(progress)
        return progress

    def _epoch(self, start: Progress) -> Progress:
        """Train to the end of an epoch, of which `start.batch` batches were seen before."""
        engine, loader = self.engine, self.engine.loader
        batches = self._batches(start.epoch)
        for _ in range(start.batch):
            next(batches)  # read once more: what comes next may depend on what was drawn for these
        engine.model.train()
        progress, began, due = start, time.perf_counter(), False
        with self._bar(start, len(loader)) as bar:
            for batch in batches:
                progress = self._batch(progress, batch)
                bar.set_postfix({TOTAL: f"{progress.sums[TOTAL] / progress.batch:.4g}"}, refresh=False)
                bar.update()
                due = due or bool(self.every and progress.batch % self.every == 0)
                if due and engine.accelerator.sync_gradients and progress.batch < len(loader):
                    due = False
                    seconds = start.seconds + time.perf_counter() - began
                    self.checkpoints.write(replace(progress, seconds=seconds))
        return replace(progress, seconds=start.seconds + time.perf_counter() - began)

    def _batches(self, epoch: int) -> Iterator[Any]:
        """Yield an epoch's batches; what is drawn for each, and by the model on it, follows from its place.

        Reading and training have numbers of their own: the loader reads ahead.
        """
        engine = self.engine
        place = (engine.training.seed, engine.accelerator.process_index, epoch)
        # Batches that every process reads whole, to take its part of each, are the same for all of them.
        whole = isinstance(getattr(engine.loader, "dataset", None), IterableDataset)
        engine.loader.set_epoch(epoch)
        batches = None
        for number in range(len(engine.loader)):
            # Whoever shuffles by itself does that at first, in one order for all processes.
            alike = whole or number == 0
            _seed(*((engine.training.seed, 0, epoch) if alike else place), number, READING)
            batches = iter(engine.loader) if batches is None else batches
            batch = next(batches, _ENDED)
            if batch is _ENDED:
                raise DataError(
                    f"batches ended after {number} in epoch {epoch + 1}, and are {len(engine.loader)} by "
                    f"their length"
                )
            _seed(*place, number, TRAINING)
            yield batch
        if batches is not None:
            next(batches, None)  # lets the loader end its epoch

    def _batch(self, progress: Progress, batch: Any) -> Progress:
        engine = self.engine
        with engine.accelerator.accumulate(engine.model):
            engine.scheduled(progress.updates)
            with engine.accelerator.autocast():
                losses = self.distillation(engine.mixed(batch), engine.model)
            values = self._values(losses)
            if not all(map(math.isfinite, values.values())):
                raise TrainingError(self._not_finite(progress, "a loss", values))
            norm = engine.backward(losses.total * engine.share_of(progress.batch))
            if not math.isfinite(norm):
                raise TrainingError(self._not_finite(progress, "a gradient", {"norm": norm}))
            changed = engine.update(progress.updates)
        sums = progress.sums | {name: progress.sums.get(name, 0.0) + value for name, value in values.items()}
        counts = {name: progress.counts.get(name, 0) + (name in values) for name in sums}
        updates = progress.updates + changed
        return replace(progress, batch=progress.batch + 1, updates=updates, sums=sums, counts=counts)

    def _values(self, losses: Losses) -> dict[str, float]:
        """Return the losses as numbers: their means over the processes, the same on each of them."""
        named = {TOTAL: losses.total, **losses.parts}
        exact = torch.float32 if losses.total.device.type == "mps" else torch.float64  # (it has no double)
        stacked = torch.stack([value.detach().to(exact) for value in named.values()])
        reduced: Tensor = self.engine.accelerator.reduce(stacked, "mean")
        return dict(zip(named, reduced.tolist(), strict=True))

    def _not_finite(self, progress: Progress, what: str, values: Mapping[str, float]) -> str:
        said = ", ".join(f"{name} {value:.3g}" for name, value in values.items())
        last = self.checkpoints.last
        kept = f"the checkpoint {last} is untouched" if last else "there is no checkpoint yet"
        return (
            f"in epoch {progress.epoch + 1}, batch {progress.batch + 1}, {what} is not finite: {said}; "
            f"{kept}. A lower lr, a warmup, or another precision may help"
        )

    def _finished(self, progress: Progress) -> Progress:
        """Evaluate, and write the epoch down."""
        engine = self.engine
        if self.distillation.needs_labels and "task" not in progress.sums:
            raise TrainingError(
                f"no batch of epoch {progress.epoch + 1} had labels, and loss= and smoothing are about them"
            )
        line: dict[str, Any] = {"epoch": progress.epoch + 1, "updates": progress.updates}
        line |= {
            name: total / progress.counts.get(name, progress.batch) for name, total in progress.sums.items()
        }
        line |= {"lr": float(engine.optimizer.param_groups[0]["lr"]), "seconds": round(progress.seconds, 3)}
        if self.evaluate is not None:
            with in_eval_mode(engine.judged), torch.no_grad():
                line |= {name: float(value) for name, value in self.evaluate(engine.judged).items()}
        engine.accelerator.log({k: v for k, v in line.items() if k != "epoch"}, step=progress.updates)
        return Progress(progress.epoch + 1, 0, progress.updates, log=[*progress.log, line])

    def _bar(self, start: Progress, batches: int) -> Any:
        shown = self.bar and self.engine.accelerator.is_main_process
        title = f"epoch {start.epoch + 1} of {self.engine.training.epochs}"
        options: dict[str, Any] = {"desc": title, "unit": "batch", "disable": hidden(shown), "leave": False}
        return tqdm(total=batches, initial=start.batch, **options)


def _seed(*place: int) -> None:
    number = int(np.random.SeedSequence(place).generate_state(1)[0])
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)


@contextlib.contextmanager
def own_randomness() -> Iterator[None]:
    """Leave the process's random numbers as they were."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
