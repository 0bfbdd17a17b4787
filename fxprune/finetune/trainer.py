"""Hugging Face's `Trainer` with a teacher beside the model; needs transformers."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import Trainer

from fxprune.finetune.loss import Distillation

__all__ = ["DistillationMixin", "DistillationTrainer"]


class DistillationMixin:
    """What makes any `Trainer` subclass distil: it stands before that in the bases, and replaces its loss."""

    distillation: Distillation

    def __init__(self, *args: Any, distillation: Distillation, **kwargs: Any) -> None:
        """Take the loss beside the trainer's own arguments, of the same model as its student."""
        self.distillation = distillation
        super().__init__(*args, **kwargs)

    def compute_loss(self, model: nn.Module, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
        """Return the loss of a batch of named arguments, with labels or without; and the output."""
        teacher = self.distillation.teacher
        if teacher is not None:
            teacher.to(next(model.parameters()).device)
        losses = self.distillation(inputs, model)
        return (losses.total, losses.output) if return_outputs else losses.total


class DistillationTrainer(DistillationMixin, Trainer):  # type: ignore[misc]  # transformers has no types
    """`transformers.Trainer` with the loss of `fxprune.Distillation`.

    Example:
        >>> distillation = fxprune.Distillation(pruned, model)
        >>> DistillationTrainer(pruned, arguments, train_dataset=data, distillation=distillation).train()
    """
