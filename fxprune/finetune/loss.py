"""`fxprune.Distillation`: the loss of a student beside its teacher, for any training loop."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxprune.choose.importance.predictions import LogProbabilities, Prediction, predictions_of
from fxprune.errors import OptionError, TrainingError
from fxprune.finetune.calls import Call, call_of
from fxprune.finetune.hidden import HiddenStates, Reads
from fxprune.graph.modes import in_eval_mode

__all__ = ["Distillation", "Losses", "TaskLoss"]

TaskLoss = Callable[[Any, Any], Tensor]


@dataclass(frozen=True)
class Losses:
    """What one batch costs, as scalars with gradients.

    total: the weighted sum, to call `backward` on.
    task: the cross entropy, or what `loss=` returned; None without labels.
    kl: KL(teacher || student); half the relative squared error where outputs are features.
    hidden: the relative squared error of hidden states; None unless asked for.
    output: what the student returned.
    """

    total: Tensor
    task: Tensor | None
    kl: Tensor | None
    hidden: Tensor | None
    output: Any

    @property
    def parts(self) -> dict[str, Tensor]:
        named = {"task": self.task, "kl": self.kl, "hidden": self.hidden}
        return {name: value for name, value in named.items() if value is not None}


class Distillation:
    """The loss of a student beside its teacher: task + kl * KL(teacher || student) + hidden * states.

    Both get the same batch; the teacher runs in eval mode, without gradients, and is left as it is (its
    weights may be of another precision than the student's: a lower one saves memory).  Works on one device,
    under autocast, and with a student wrapped for several processes (pass that as `wrapped`).

    Args:
        student: the model in training, of `fxprune.prune` or any other with the same outputs.
        teacher: the dense model; None to learn from labels alone, with kl=0.
        kl: the weight of the divergence.  Outputs that are one tensor [batch, classes], or have one called
            `logits`, are class scores; others are compared by their relative squared error.
        hidden: the weight of hidden states' error, for which the student must be one of fxprune's, pruned
            from the teacher: its plan says which of the teacher's channels its own are.
        loss: (output, labels) -> a scalar, in place of cross entropy.
        smoothing: of labels, in the cross entropy.
        log_probabilities: from the output to log-probabilities [batch, ..., classes], as of `prune`.

    Raises:
        OptionError: a weight is negative, or is of a teacher that is missing; or an option has no effect.
        PlanError: hidden states were asked for, and the student was not made by fxprune.
        TrainingError: the student was not pruned from the teacher, or the two have other classes.

    Example:
        >>> distillation = fxprune.Distillation(pruned, model, hidden=0.1)
        >>> distillation((images, labels)).total.backward()
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | None,
        *,
        kl: float = 0.2,
        hidden: float = 0.0,
        loss: TaskLoss | None = None,
        smoothing: float = 0.0,
        log_probabilities: LogProbabilities | None = None,
    ) -> None:
        if not (kl >= 0 and hidden >= 0):
            raise OptionError(f"kl={kl}, hidden={hidden}: weights of losses are not negative")
        if teacher is None and (kl or hidden):
            raise OptionError("there is no teacher to be like: kl=0 and hidden=0 learn from labels alone")
        if loss is not None and smoothing:
            raise OptionError(f"smoothing={smoothing} is of the cross entropy, and loss= takes its place")
        self.student = student
        self.kl, self.hidden = kl, hidden
        self.loss, self.smoothing = loss, smoothing
        self.log_probabilities = log_probabilities
        self.states = HiddenStates(student, teacher) if teacher is not None and hidden else None
        self.teacher = self.states.teacher if self.states else teacher

    def __call__(self, batch: Any, wrapped: nn.Module | None = None) -> Losses:
        """Return the losses of a batch: inputs, `(inputs, labels)`, or a mapping of keyword arguments.

        Raises:
            DataError: the batch is nothing that a model is called with.
            TrainingError: the outputs are not of the same classes, none of the losses applies, or hidden
                states have no gradients.
        """
        call = call_of(batch, self.student)
        theirs = Reads(self.teacher, self.states.theirs if self.states else {})
        wanted = self._wanted(call, theirs)
        ours = Reads(self.student, self.states.ours if self.states else {})
        with self._watch(ours):
            output = call.on(self.student if wrapped is None else wrapped)
        task = self._task(output, call)
        kl = self._divergence(wanted, output, call.size) if self.kl else None
        hidden = self.states.error(ours, theirs) if self.states else None
        weighted = [(task, 1.0), (kl, self.kl), (hidden, self.hidden)]
        terms = [weight * value for value, weight in weighted if value is not None]
        if not terms:
            raise TrainingError("there is nothing to learn from: no labels, kl=0 and hidden=0")
        return Losses(torch.stack(terms).sum(), task, kl, hidden, output)

    @property
    def needs_labels(self) -> bool:
        """Was something asked for that only batches with labels read?"""
        return self.loss is not None or self.smoothing > 0

    def _wanted(self, call: Call, reads: Reads) -> Any:
        if self.teacher is None or not (self.kl or self.hidden):
            return None
        with in_eval_mode(self.teacher), torch.no_grad(), self._watch(reads):
            return call.on_teacher(self.teacher, self.student)

    def _watch(self, reads: Reads) -> contextlib.AbstractContextManager[Any]:
        return reads if self.states else contextlib.nullcontext()

    def _task(self, output: Any, call: Call) -> Tensor | None:
        if call.labels is None:
            return None
        if self.loss is not None:
            return self.loss(output, call.labels)
        classes = predictions_of(output, call.size, self.log_probabilities).classes
        if classes is None:
            raise TrainingError(
                "the batches have labels, and the model's output is not [batch, classes]: say what it costs "
                "with loss=, a function (output, labels) -> a scalar, or leave the labels out"
            )
        scores = classes.flatten(0, 1)
        labels = torch.as_tensor(call.labels, device=scores.device)
        labels = labels.flatten(0, -2) if labels.is_floating_point() else labels.flatten().long()
        count = scores.shape[-1]
        if not labels.is_floating_point() and int(labels.max()) >= count:
            raise TrainingError(
                f"a label is {int(labels.max())}, and the model has {count} classes, 0 to {count - 1}"
            )
        return F.cross_entropy(scores, labels, label_smoothing=self.smoothing)

    def _divergence(self, wanted: Any, output: Any, size: int) -> Tensor:
        teacher = predictions_of(wanted, size, self.log_probabilities)
        student = predictions_of(output, size, self.log_probabilities)
        theirs, ours = _shape(teacher), _shape(student)
        if theirs != ours:
            raise TrainingError(
                f"the teacher says {theirs}, and the student {ours}: the teacher must have the student's "
                f"outputs, or train without one (kl=0)"
            )
        return teacher.divergence(student).mean()


def _shape(prediction: Prediction) -> str:
    if prediction.classes is not None:
        return f"{prediction.classes.shape[-1]} classes"
    assert prediction.features is not None
    return f"{prediction.features.shape[1]} features"
