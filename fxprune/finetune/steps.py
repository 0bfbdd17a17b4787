"""`fxprune.prune_and_distill`: prune a little, train, prune on; resumed as a whole."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import nn

from fxprune.choose.importance.predictions import LogProbabilities
from fxprune.choose.importance.score import criterion_for, options_of
from fxprune.compiler.pipeline import prune
from fxprune.finetune.accelerated import Trackers
from fxprune.finetune.distill import distill
from fxprune.finetune.loop import Evaluate
from fxprune.finetune.loss import TaskLoss
from fxprune.finetune.training import Training

__all__ = ["prune_and_distill"]


def prune_and_distill(
    model: nn.Module,
    batches: Iterable[Any],
    ratio: float = 0.5,
    training: Training | None = None,
    *,
    steps: int = 3,
    teacher: nn.Module | None = None,
    loss: TaskLoss | None = None,
    log_probabilities: LogProbabilities | None = None,
    evaluate: Evaluate | None = None,
    folder: str | os.PathLike[str] | None = None,
    resume: bool = False,
    every: int = 0,
    trackers: Trackers = (),
    progress: bool = True,
    **options: Any,
) -> Any:
    """Prune a model in steps, and distil from it after each, the last one included.

    Each step is scored on the trained weights of the one before, and trained as `training` says (so many
    epochs *a step*).  Killed at any moment, the same call with `resume=True` prunes again what is no longer
    in memory, takes the trained weights of the finished steps from `folder/step-N`, and goes on.

    Args:
        model: the dense model, teacher of all steps; not changed but for its device.
        teacher: another one.
        batches, training, loss, evaluate, resume, every, trackers, progress: as of `distill`.
        log_probabilities: as of `distill`; of `prune` as well, where `data` is scored by it.
        ratio: the fraction removed in the end, as of `prune`.
        steps: how many times to prune; 1 is `prune` and `distill` after one another.
        folder: for the steps' checkpoints and logs.
        options: those of `prune` (`data=`, `target=`, `form=`, ...), but `steps` and `between`.

    Returns:
        The pruned and trained model, in the mode that `model` is in.

    Raises:
        FxpruneError: as `prune` and `distill` do.  TrainingError: `folder` holds steps of another call.

    Example:
        >>> training = fxprune.Training(epochs=10, lr=5e-4)
        >>> small = fxprune.prune_and_distill(model, loader, 0.5, training, data=proxy, folder="run")
    """

    def train(student: nn.Module, step: int) -> None:
        distill(
            student,
            model if teacher is None else teacher,
            batches,
            training,
            loss=loss,
            log_probabilities=log_probabilities,
            evaluate=evaluate,
            folder=None if folder is None else Path(folder) / f"step-{step}",
            resume=resume,
            every=every,
            trackers=trackers,
            progress=progress,
        )

    criterion = criterion_for(options.get("importance"), options.get("data"))
    if log_probabilities is not None and "log_probabilities" in options_of(criterion):
        given = options.get("importance_options") or {}
        options["importance_options"] = {"log_probabilities": log_probabilities} | given
    pruned = prune(model, ratio, steps=steps, between=train if steps > 1 else None, **options)
    train(pruned, steps)
    return pruned
