"""Accelerate's accelerator for one run: none that would compute otherwise than it was told."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any

from fxprune.errors import OptionError, TrainingError
from fxprune.finetune.shards import sharded_on_cpu
from fxprune.finetune.training import Training

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["Trackers", "accelerated", "tracked"]

# Names that Accelerate knows ("tensorboard", "wandb", ...), or trackers made by you.
Trackers = Sequence[Any]

NEEDS = "training needs the extra: pip install 'fxprune[finetune]' ({})"
# What `accelerate launch` says in the environment -> what `Training` calls it.
LAUNCHED = {
    "ACCELERATE_MIXED_PRECISION": "precision",
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "accumulation",
}
# Lists in which an accelerator keeps what it prepared.
PREPARED = ("_models", "_optimizers", "_schedulers", "_dataloaders", "_custom_objects")


@contextlib.contextmanager
def accelerated(
    training: Training, given: Accelerator | None, trackers: Trackers = (), folder: Path | None = None
) -> Iterator[Accelerator]:
    """Yield the accelerator given, or one of this training that leaves no trace in the process.

    Accelerate keeps one state for the process, which would refuse the next run another precision.

    Args:
        trackers: are told of each epoch; they write below `folder`, if they write files.

    Raises:
        TrainingError: Accelerate, timm or a tracker is missing; or several processes were started, and
            Accelerate would let each of them train alone.
        OptionError: the accelerator given accumulates or computes in another way than `training` says, or
            has trackers of its own.
    """
    try:
        import timm  # noqa: F401
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState, GradientState
        from accelerate.utils import DataLoaderConfiguration
    except ImportError as error:
        raise TrainingError(NEEDS.format(error)) from error
    _refuse_other_launch(training)
    if given is not None:
        _refuse_other_accelerator(given, training, trackers)
        _refuse_idle_precision(given)
        with _as_prepared_before(given):
            yield given
        return
    log_with = _checked(trackers)
    shared = AcceleratorState._shared_state, GradientState._shared_state
    before = [*map(dict, shared)]  # another one's, a Trainer's say, in a precision of its own
    AcceleratorState._reset_state()
    config = DataLoaderConfiguration(use_seedable_sampler=True, data_seed=training.seed)
    try:
        try:
            accelerator = Accelerator(
                mixed_precision=training.precision,
                gradient_accumulation_steps=training.accumulation,
                dataloader_config=config,
                step_scheduler_with_optimizer=False,
                log_with=log_with,
                project_dir=folder,
            )
        except (ValueError, ImportError, RuntimeError) as error:
            raise TrainingError(f"Accelerate can't train so: {shorten(str(error), 200)}") from error
        _refuse_strangers(accelerator)
        _refuse_idle_precision(accelerator)
        with sharded_on_cpu(accelerator, training.precision):
            yield accelerator
    finally:
        for state, held in zip(shared, before, strict=True):
            state.clear()
            state.update(held)


def _refuse_other_accelerator(given: Accelerator, training: Training, trackers: Trackers) -> None:
    """Refuse an accelerator that does something else than the run was told.

    Raises:
        OptionError: it accumulates or computes in another way, or trackers are asked for that it can't tell.
    """
    if given.mixed_precision != training.precision:
        raise OptionError(
            f"the accelerator's precision is {given.mixed_precision}, and "
            f"Training(precision={training.precision!r}) says otherwise"
        )
    if given.gradient_accumulation_steps != training.accumulation:
        raise OptionError(
            f"the accelerator accumulates {given.gradient_accumulation_steps} batches, and "
            f"Training(accumulation={training.accumulation}) says otherwise"
        )
    if trackers:
        raise OptionError("an accelerator of your own has its own trackers: give it log_with=")


def _refuse_other_launch(training: Training) -> None:
    """Refuse what `accelerate launch` was told and the run would not do.

    Its "no" for a precision says nothing: it is written where no precision was named.

    Raises:
        OptionError: the two disagree.
    """
    for variable, name in LAUNCHED.items():
        said, ours = os.environ.get(variable), str(getattr(training, name))
        if said not in (None, "no", ours):
            raise OptionError(
                f"Accelerate was started with {variable}={said}, and {name} is {ours}: say {name}={said} too"
            )


def _refuse_strangers(accelerator: Accelerator) -> None:
    """Refuse processes that were started together, and would each train alone and write the same files.

    Raises:
        TrainingError: they would.
    """
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started > 1 and accelerator.num_processes == 1:
        raise TrainingError(
            f"{started} processes were started together, and Accelerate finds no GPU for them, so that each "
            f"would train alone: set ACCELERATE_USE_CPU=1 to train together on CPUs"
        )


def _refuse_idle_precision(accelerator: Accelerator) -> None:
    """Refuse a precision that Accelerate would leave out without a word: fp16 on CPUs.

    Raises:
        TrainingError: it would.
    """
    if accelerator.mixed_precision != "no" and not accelerator.native_amp:
        raise TrainingError(
            f"Accelerate can't train so: precision={accelerator.mixed_precision!r} is not computed on "
            f"{accelerator.device.type}, where 'bf16' may be"
        )


def _checked(trackers: Trackers) -> list[Any] | None:
    """Return trackers as Accelerate takes them, none that it would leave out in silence or fail at.

    Raises:
        TrainingError: a tracker is not installed.
        OptionError: Accelerate knows none of that name.
    """
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    there = [str(name) for name in get_available_trackers()]
    for tracker in trackers:
        if isinstance(tracker, str) and tracker not in there:
            names = ", ".join(sorted(map(str, LOGGER_TYPE_TO_CLASS)))
            if tracker not in LOGGER_TYPE_TO_CLASS:
                raise OptionError(f"trackers: Accelerate knows no {tracker!r}, but {names}")
            raise TrainingError(f"the tracker {tracker} is not installed: pip install {tracker}")
    return list(trackers) or None


@contextlib.contextmanager
def _as_prepared_before(accelerator: Accelerator) -> Iterator[None]:
    """Forget what a run prepares: the next one's checkpoints would hold it as well."""
    lists = [vars(accelerator)[name] for name in PREPARED]
    before = [list(held) for held in lists]
    try:
        yield
    finally:
        for held, then in zip(lists, before, strict=True):
            held[:] = then


@contextlib.contextmanager
def tracked(accelerator: Accelerator, training: Training, trackers: Trackers) -> Iterator[None]:
    """Let trackers begin, and end: they write from here on."""
    if trackers:
        # The name is that of the folder for TensorBoard's files, and of the project elsewhere.
        accelerator.init_trackers("tracked", config=asdict(training))
    try:
        yield
    finally:
        for tracker in accelerator.trackers if trackers else ():
            tracker.finish()  # and not end_training, which ends the group of processes
