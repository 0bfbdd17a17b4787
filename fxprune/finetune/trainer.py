"""Hugging Face's `Trainer` with a teacher beside the model; needs transformers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import Trainer
from transformers.utils import SAFE_WEIGHTS_NAME

from fxprune.errors import FileError, OptionError
from fxprune.finetune.loss import Distillation
from fxprune.graph.tensors import device_of

__all__ = ["DistillationMixin", "DistillationTrainer"]

NO_EFFECT = "{} would have no effect, since the loss is that of distillation: give {} to fxprune.Distillation"


class DistillationMixin:
    """A mixin that makes a `Trainer` distil: named before it among the bases, it replaces the loss."""

    distillation: Distillation

    def __init__(self, *args: Any, distillation: Distillation, **kwargs: Any) -> None:
        """Take the loss beside the trainer's own arguments; its student is the trainer's model.

        Raises:
            OptionError: the arguments ask for another loss, which would have no effect.
        """
        self.distillation = distillation
        self._in_checkpoint = False
        arguments = kwargs.get("args", args[1] if len(args) > 1 else None)
        if getattr(arguments, "label_smoothing_factor", 0):
            raise OptionError(NO_EFFECT.format("label_smoothing_factor", "smoothing="))
        super().__init__(*args, **kwargs)
        if getattr(self, "compute_loss_func", None) is not None:
            raise OptionError(NO_EFFECT.format("compute_loss_func", "loss="))
        # The loss is a batch's mean, whatever the model's own would be: the trainer divides by accumulation.
        self.model_accepts_loss_kwargs = False

    def compute_loss(self, model: nn.Module, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
        """Return the loss of a batch of named arguments, with labels or without; and the output.

        An output that is no mapping has the loss before it, which is where the trainer looks for it.
        """
        teacher = self.distillation.teacher
        if teacher is not None:
            teacher.to(device_of(model))
        losses = self.distillation(inputs, model)
        if not return_outputs:
            return losses.total
        output = losses.output
        if not isinstance(output, Mapping):
            output = (losses.total, *(output if isinstance(output, tuple | list) else (output,)))
        return losses.total, output

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the student as the trainer does.

        Raises:
            FileError: its configuration can't express its sizes; the trainer's own checkpoints are written
                all the same, and gone on from.
        """
        self._in_checkpoint = _internal_call
        super().save_model(output_dir, _internal_call)  # type: ignore[misc]  # of the class after this one

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        try:
            super()._save(output_dir, state_dict)  # type: ignore[misc]
        except FileError:
            if not self._in_checkpoint or output_dir is None:
                raise
            model: nn.Module = self.model  # type: ignore[attr-defined]
            state = model.state_dict() if state_dict is None else state_dict
            whole = {name: t.detach().cpu().contiguous().clone() for name, t in state.items()}
            save_file(whole, Path(output_dir) / SAFE_WEIGHTS_NAME, metadata={"format": "pt"})


class DistillationTrainer(DistillationMixin, Trainer):  # type: ignore[misc]  # transformers has no types
    """`transformers.Trainer` with the loss of `fxprune.Distillation`.

    Example:
        >>> distillation = fxprune.Distillation(pruned, model)
        >>> DistillationTrainer(pruned, arguments, train_dataset=data, distillation=distillation).train()
    """
