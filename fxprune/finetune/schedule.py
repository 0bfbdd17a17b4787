"""The learning rate of each update, by timm's schedules; and numbers that a schedule would not read."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from fxprune.errors import OptionError
from fxprune.finetune.training import Training

__all__ = ["refuse_idle_numbers", "schedule_of"]

POINTS = 16  # of an epoch, where the rates of a whole run are compared
USUAL = Training()


def schedule_of(optimizer: Any, training: Training, updates: int) -> Any:
    """Return timm's schedule by update, of which an epoch has so many; None for a constant rate.

    Raises:
        OptionError: timm has none of that name, or refuses a number.
    """
    from timm.scheduler import create_scheduler_v2

    try:
        made, _ = create_scheduler_v2(
            optimizer,
            sched=training.sched,
            num_epochs=training.epochs,
            min_lr=training.min_lr,
            warmup_lr=training.min_lr,
            warmup_epochs=training.warmup,  # type: ignore[arg-type]  # parts of an epoch do as well
            step_on_epochs=False,
            updates_per_epoch=updates,
        )
    except (AssertionError, ValueError, TypeError, KeyError, RuntimeError) as error:
        raise OptionError(f"timm: {error or type(error).__name__}") from error
    return made


def refuse_idle_numbers(training: Training) -> None:
    """Refuse what was asked of the learning rate and would not change it.

    Raises:
        OptionError: the schedule ends as it began, or reads no `min_lr` or `warmup`.
    """
    rates = _rates(training)
    for name in ("min_lr", "warmup"):
        usual = getattr(USUAL, name)
        if getattr(training, name) != usual and rates == _rates_if(replace(training, **{name: usual})):
            raise OptionError(f"{name}={getattr(training, name)} has no effect with sched={training.sched!r}")
    moves = training.sched not in ("constant", "none", USUAL.sched)
    if moves and rates == _rates(replace(training, sched="constant")):
        raise OptionError(
            f"sched={training.sched!r} keeps the learning rate as it is for {training.epochs} epochs: timm "
            f"lowers it later; take 'cosine', 'poly', ..., or 'constant'"
        )


def _rates_if(training: Training) -> list[float] | None:
    """Return the learning rates of another run; None where timm refuses that."""
    try:
        return _rates(training)
    except OptionError:
        return None


def _rates(training: Training) -> list[float]:
    """Return the learning rates of a run, at some points of each epoch."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=training.lr)
    schedule = schedule_of(optimizer, training, POINTS)
    found = []
    for update in range(training.epochs * POINTS):
        if schedule is not None:
            schedule.step_update(update)
        found.append(float(optimizer.param_groups[0]["lr"]))
    return found
