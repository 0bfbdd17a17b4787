"""What others built and a run uses: Accelerate's accelerator; timm's optimiser, schedule, average, mixup."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from fxprune.errors import OptionError, TrainingError
from fxprune.finetune.training import Training

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["Engine", "accelerated"]

NEEDS = "training needs the extra: pip install 'fxprune[finetune]' ({})"


@contextlib.contextmanager
def accelerated(training: Training, given: Accelerator | None) -> Iterator[Accelerator]:
    """Yield the accelerator given, or one of this training that leaves no trace in the process.

    Accelerate keeps one state for the process, which would refuse the next run another precision.

    Raises:
        TrainingError: Accelerate or timm is missing.
        OptionError: the accelerator given accumulates or computes in another way than `training` says.
    """
    try:
        import timm  # noqa: F401
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState
        from accelerate.utils import DataLoaderConfiguration
    except ImportError as error:
        raise TrainingError(NEEDS.format(error)) from error
    if given is not None:
        if given.gradient_accumulation_steps != training.accumulation:
            raise OptionError(
                f"the accelerator accumulates {given.gradient_accumulation_steps} batches, and "
                f"Training(accumulation={training.accumulation}) says otherwise"
            )
        yield given
        return
    before = dict(AcceleratorState._shared_state)  # another one's, a Trainer's say, in a precision of its own
    AcceleratorState._reset_state()
    config = DataLoaderConfiguration(use_seedable_sampler=True, data_seed=training.seed)
    try:
        yield Accelerator(
            mixed_precision=training.precision,
            gradient_accumulation_steps=training.accumulation,
            dataloader_config=config,
            step_scheduler_with_optimizer=False,
        )
    finally:
        AcceleratorState._reset_state()
        AcceleratorState._shared_state.update(before)


@dataclass
class Engine:
    """A student on its way: wrapped for its device, with what changes its weights.

    bare, model: the student, and what runs it (wrapped for several processes, in mixed precision).
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
        """Prepare a student; its weights move to the accelerator's device.

        Raises:
            OptionError: timm has no optimiser or schedule of that name, or refuses a number.
        """
        from timm.data import Mixup
        from timm.optim import create_optimizer_v2
        from timm.scheduler import create_scheduler_v2
        from timm.utils import ModelEmaV3

        student.to(accelerator.device)
        average = ModelEmaV3(student, decay=training.ema) if training.ema else None
        try:
            optimizer = create_optimizer_v2(
                student, opt=training.opt, lr=training.lr, weight_decay=training.weight_decay
            )
            schedule, _ = create_scheduler_v2(
                optimizer,
                sched=training.sched,
                num_epochs=training.epochs,
                min_lr=training.min_lr,
                warmup_lr=training.min_lr,
                warmup_epochs=training.warmup,  # type: ignore[arg-type]  # parts of an epoch do as well
                step_on_epochs=False,
                updates_per_epoch=-(-len(loader) // training.accumulation),
            )
        except (AssertionError, ValueError, TypeError, KeyError, RuntimeError) as error:
            raise OptionError(f"timm: {error or type(error).__name__}") from error
        mixup = None
        if training.mixup or training.cutmix:
            mixup = Mixup(
                mixup_alpha=training.mixup,
                cutmix_alpha=training.cutmix,
                label_smoothing=training.smoothing,
                num_classes=classes,
            )
        model, optimizer = accelerator.prepare(student, optimizer)
        if average is not None:
            accelerator.register_for_checkpointing(average)
        return Engine(accelerator, training, student, model, loader, optimizer, schedule, average, mixup)

    def scheduled(self, updates: int) -> float:
        """Set the learning rate of the update after so many, and return it."""
        if self.schedule is not None:
            self.schedule.step_update(updates)
        return float(self.optimizer.param_groups[0]["lr"])

    def update(self, total: Tensor, updates: int) -> bool:
        """Go one batch on; say whether the weights changed."""
        self.accelerator.backward(total)
        if self.accelerator.sync_gradients and self.training.clip:
            self.accelerator.clip_grad_norm_(self.model.parameters(), self.training.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        changed = bool(self.accelerator.sync_gradients)
        if changed and self.average is not None:
            self.average.update(self.bare, step=updates + 1)
        return changed

    def mixed(self, batch: Any) -> Any:
        """Mix images and labels with one another, where that was asked for and there are both."""
        if self.mixup is None or not (isinstance(batch, (tuple, list)) and len(batch) == 2):
            return batch
        images, labels = batch
        if len(images) % 2:
            raise OptionError(f"mixup pairs images, and a batch has {len(images)}: drop the last batch")
        mixed: Any = self.mixup(images.clone(), labels)  # timm writes into the images
        return mixed

    @property
    def judged(self) -> nn.Module:
        """What is evaluated: the average where there is one."""
        return self.bare if self.average is None else self.average.module
