"""What others built and a run uses: timm's optimiser, schedule, average and mixup, on an accelerator."""

from __future__ import annotations

import math
from dataclasses import dataclass
from textwrap import shorten
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from fxprune.errors import OptionError, TrainingError
from fxprune.finetune.mixing import mix
from fxprune.finetune.schedule import schedule_of
from fxprune.finetune.shards import (
    WholeAverage,
    copy_to_shard,
    refuse_uncalled_units,
    shard_average,
    sharded,
)
from fxprune.finetune.training import Training

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["Engine"]


@dataclass(frozen=True)
class Engine:
    """A student on its way: wrapped for its device, with what changes its weights.

    bare, model: the student (a copy of it, where weights are sharded), and what runs it (wrapped for several
        processes, in mixed precision).
    loader: the batches.  optimizer: Accelerate's, of timm's.  schedule: timm's, by update; None if constant.
    average: timm's, of the weights; None without.  mixup: of timm; None without.
    """

    accelerator: Accelerator
    training: Training
    bare: nn.Module
    model: nn.Module
    loader: Any
    optimizer: Any
    schedule: Any
    average: Any
    mixup: Any

    @staticmethod
    def of(
        student: nn.Module, loader: Any, training: Training, accelerator: Accelerator, classes: int
    ) -> Engine:
        """Prepare a student; its weights move to the accelerator's device, unless they are sharded.

        Raises:
            OptionError: timm has no optimiser or schedule of that name, or refuses a number.
            TrainingError: it can't be sharded as was asked for.
        """
        from timm.data import Mixup
        from timm.optim import create_optimizer_v2
        from timm.utils import ModelEmaV3

        parts = sharded(accelerator)
        student = copy_to_shard(student, accelerator) if parts else student.to(accelerator.device)
        average = ModelEmaV3(student, decay=training.ema) if training.ema else None
        try:
            optimizer = create_optimizer_v2(
                student, opt=training.opt, lr=training.lr, weight_decay=training.weight_decay
            )
        except (AssertionError, ValueError, TypeError, KeyError, RuntimeError) as error:
            raise OptionError(f"timm: {error or type(error).__name__}") from error
        schedule = schedule_of(optimizer, training, -(-len(loader) // training.accumulation))
        mixup = None
        if training.mixup or training.cutmix:
            mixup = Mixup(
                mixup_alpha=training.mixup,
                cutmix_alpha=training.cutmix,
                label_smoothing=training.smoothing,
                num_classes=classes,
            )
        try:
            model, optimizer = accelerator.prepare(student, optimizer)
        except (ValueError, KeyError) as error:
            raise TrainingError(f"the student can't be prepared: {shorten(str(error), 200)}") from error
        if parts:
            refuse_uncalled_units(student)
        if average is not None:
            if parts:
                shard_average(average, accelerator)
            accelerator.register_for_checkpointing(WholeAverage(average) if parts else average)
        return Engine(accelerator, training, student, model, loader, optimizer, schedule, average, mixup)

    def scheduled(self, updates: int) -> float:
        """Set the learning rate of the update after so many, and return it."""
        if self.schedule is not None:
            self.schedule.step_update(updates)
        return float(self.optimizer.param_groups[0]["lr"])

    def share_of(self, batch: int) -> float:
        """Return by how much a batch counts for more than Accelerate makes of it, a share of a full update.

        An epoch's last update may be of fewer batches, and is their mean all the same.
        """
        accumulation = self.training.accumulation
        if not self.accelerator.gradient_state.sync_with_dataloader:  # it is completed in the next epoch
            return 1.0
        return accumulation / min(accumulation, len(self.loader) - batch // accumulation * accumulation)

    def backward(self, total: Tensor) -> float:
        """Add a batch's gradients to those of its update; return the norm of them all once it is complete.

        They are clipped then.  What a gradient scaler skips and takes back is 0, as it is before that.
        """
        self.accelerator.backward(total)
        if not self.accelerator.sync_gradients:
            return 0.0
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.training.clip or math.inf)
        if norm is None or self.accelerator.scaler is not None:
            return 0.0
        return float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)

    def update(self, updates: int) -> bool:
        """Change the weights, if an update is complete; return whether it did.  `updates` came before."""
        self.optimizer.step()
        self.optimizer.zero_grad()
        ready, skipped = self.accelerator.sync_gradients, self.accelerator.optimizer_step_was_skipped
        if ready and not skipped and self.average is not None:
            self.average.update(self.bare, step=updates + 1)
        return bool(ready and not skipped)

    def mixed(self, batch: Any) -> Any:
        """Mix images and labels with one another, where that was asked for."""
        return batch if self.mixup is None else mix(self.mixup, batch)

    @property
    def judged(self) -> nn.Module:
        """What is evaluated: the average where there is one."""
        return self.bare if self.average is None else self.average.module
