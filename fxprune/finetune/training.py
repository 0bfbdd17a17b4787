"""`Training`: how a student is trained, as plain data that a checkpoint can be held against."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from numbers import Integral, Real

from fxprune.errors import OptionError

__all__ = ["Training"]

PRECISIONS = ("no", "bf16", "fp16", "fp8")


@dataclass(frozen=True)
class Training:
    """How to train: every number that the result depends on, beside the data.

    epochs: passes over the data.
    lr, min_lr: the learning rate's peak, and where the warmup begins and the schedule ends.
    warmup: epochs (or a part of one) in which the learning rate rises.
    opt, sched: names in timm's factories (`create_optimizer_v2`, `create_scheduler_v2`).
    weight_decay: of matrices; none of biases, norms, and what the model itself exempts.
    clip: the largest norm of the gradient; 0 for any.
    kl: the weight of KL(teacher || student) beside the cross entropy (0.2 in the paper).
    hidden: the weight of the squared error of hidden states, on the teacher's channels that were kept.
    mixup, cutmix: timm's alphas; 0 for none.
    smoothing: of labels.
    ema: decay of the average of weights that becomes the result; 0 for the last weights themselves.
    accumulation: batches to an update.
    precision: "no", "bf16", "fp16" or "fp8", of Accelerate.
    seed: of the order of the data, augmentation, dropout and mixup.

    Raises:
        OptionError: a number is out of its range.

    Example:
        >>> fxprune.distill(pruned, model, loader, fxprune.Training(epochs=5, lr=3e-4, ema=0.999))
    """

    epochs: int = 10
    lr: float = 5e-4
    min_lr: float = 1e-6
    warmup: float = 0.0
    opt: str = "adamw"
    sched: str = "cosine"
    weight_decay: float = 0.05
    clip: float = 1.0
    kl: float = 0.2
    hidden: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    smoothing: float = 0.0
    ema: float = 0.0
    accumulation: int = 1
    precision: str = "no"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "accumulation"):
            if not _is_whole(getattr(self, name)) or getattr(self, name) < 1:
                raise OptionError(f"{name}={getattr(self, name)}: a whole number of at least 1")
        if not _is_whole(self.seed):
            raise OptionError(f"seed={self.seed}: a whole number")
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(field.default, float) and not isinstance(value, Real):
                raise OptionError(f"{field.name}={value!r}: a finite number, not negative")
            if isinstance(value, Real) and not (math.isfinite(value) and float(value) >= 0):
                raise OptionError(f"{field.name}={value}: a finite number, not negative")
        if self.lr == 0:
            raise OptionError("lr=0 trains nothing")
        for name in ("ema", "smoothing"):
            if getattr(self, name) >= 1:
                raise OptionError(f"{name}={getattr(self, name)}: less than 1")
        if self.precision not in PRECISIONS:
            raise OptionError(f"precision={self.precision!r}: one of {', '.join(PRECISIONS)}")


def _is_whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)
