"""`fxprune.distill`: train a pruned model beside its dense original."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from fxprune.choose.importance.predictions import LogProbabilities, predictions_of
from fxprune.errors import OptionError, TrainingError
from fxprune.finetune.accelerated import Trackers, accelerated, tracked
from fxprune.finetune.calls import call_of
from fxprune.finetune.checkpoints import Checkpoints
from fxprune.finetune.engine import Engine
from fxprune.finetune.loader import data_digest, loader_of
from fxprune.finetune.loop import Evaluate, Loop, own_randomness
from fxprune.finetune.loss import Distillation, TaskLoss
from fxprune.finetune.schedule import refuse_idle_numbers
from fxprune.finetune.shards import refuse_other_shards, sharded, take_whole
from fxprune.finetune.training import Training
from fxprune.graph.modes import in_eval_mode
from fxprune.graph.nests import PLAIN
from fxprune.result.fingerprint import json_digest, layout_digest, weights_digest
from fxprune.result.forms import is_result
from fxprune.result.plan import plan_data
from fxprune.result.pruned_module import plan_of

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["Trained", "distill"]

# What a plan says that was measured: its last bits are another machine's.
MEASURED = {"refit", "bases", "discarded", "divergence"}


@dataclass(frozen=True)
class Trained:
    """What a run came to.

    log: for each epoch its number, updates so far, the means of the losses (`loss`, `task`, `kl`, `hidden`),
        the last learning rate, seconds, and what `evaluate` returned.
    updates: of the weights.
    """

    log: list[dict[str, Any]]
    updates: int


def distill(
    student: nn.Module,
    teacher: nn.Module | None,
    batches: Iterable[Any],
    training: Training | None = None,
    *,
    loss: TaskLoss | None = None,
    log_probabilities: LogProbabilities | None = None,
    evaluate: Evaluate | None = None,
    folder: str | os.PathLike[str] | None = None,
    resume: bool = False,
    every: int = 0,
    trackers: Trackers = (),
    accelerator: Accelerator | None = None,
    progress: bool = True,
) -> Trained:
    """Train a student in place: cross entropy where there are labels, and divergence from the teacher.

    The loss is that of `fxprune.Distillation`.  Accelerate runs it: on one process or several (`accelerate
    launch`; with `--use_fsdp --fsdp_version 2` each holds a part of the weights), in mixed precision, with
    its trackers; optimiser, schedule, average and mixup are timm's.  A run with a `folder` can be killed at
    any moment and goes on from its last checkpoint; on one process on a CPU it ends with the same bits.

    Args:
        student: what `prune` returned, in either form, or any model with the teacher's outputs; moved to the
            accelerator's device, unless weights are sharded.
        teacher: the dense model, which is not changed but for its device; None to learn from labels alone,
            with `Training(kl=0)`.
        batches: read once an epoch, and of known length: a DataLoader (of which every process gets other
            batches), or a list or the like (of which every process gets a part of each batch).  A batch is a
            tensor of inputs [batch, ...], `(inputs, labels)`, or a mapping of keyword arguments; labels are
            whole numbers [batch], or shares [batch, classes].
        training: how to train; `Training()` by default.
        loss: (output, labels) -> a scalar, in place of cross entropy.
        log_probabilities: from the output to log-probabilities [batch, ..., classes], as of `prune`.
        evaluate: called after each epoch with the student (or its average) in eval mode, without gradients;
            returns numbers by name, for the log.
        folder: for checkpoints, and `log.jsonl` with a line an epoch.
        resume: go on from the last checkpoint in `folder`, or begin where there is none.
        every: write a checkpoint after so many batches as well as at each epoch's end.
        trackers: of Accelerate, by name ("tensorboard", "wandb", ...) or made by you: they are told of each
            epoch, and keep their files in `folder`.
        accelerator: one of your own, for trackers or plugins; its accumulation and precision must be those
            of `training`.
        progress: show a bar.

    Returns:
        What the epochs came to; the student has the trained weights (or their average), in its old mode.

    Raises:
        TrainingError: the folder holds another run; the teacher has other classes; a loss or a gradient is
            not finite; the accelerator shards weights by something else than FSDP2; the extra `[finetune]`
            is missing.
            Checkpoints stay as they were.
        DataError: batches are none, or of unknown length.
        OptionError: an option is out of range, or would have no effect.

    Example:
        >>> pruned = fxprune.prune(model, 0.5, data=batches)
        >>> fxprune.distill(pruned, model, loader, fxprune.Training(epochs=30, lr=5e-4), folder="run")
    """
    training = training or Training()
    if every < 0:
        raise OptionError(f"every={every}: a number of batches, or 0")
    if every and folder is None:
        raise OptionError(f"every={every} needs folder=, where checkpoints are kept")
    if trackers and folder is None:
        raise OptionError("trackers need folder=, where they keep their files")
    place = None if folder is None else Path(folder)
    with (
        own_randomness(),
        accelerated(training, accelerator, trackers, place) as device,
        _as_it_was(student),
    ):
        refuse_other_shards(device)
        refuse_idle_numbers(training)
        loader = loader_of(batches, device)
        functions = {"loss": loss, "log_probabilities": log_probabilities}
        identity: Mapping[str, Any] = {}
        if place is not None:  # it is kept with checkpoints
            identity = _identity(student, teacher, training, len(loader), functions)
            identity = {**identity, "data": data_digest(batches)}
        mixes = training.mixup > 0 or training.cutmix > 0
        distillation = Distillation(
            student,
            teacher if teacher is None else teacher.to(device.device),
            kl=training.kl,
            hidden=training.hidden,
            loss=loss,
            smoothing=0.0 if mixes else training.smoothing,  # mixed labels are smooth already
            log_probabilities=log_probabilities,
        )
        classes = _classes(student.to(device.device), loader, log_probabilities) if mixes else 0
        engine = Engine.of(student, loader, training, device, classes)
        checkpoints = Checkpoints(place, device)
        reached = checkpoints.begin(identity, resume)
        distillation.student = engine.bare
        with tracked(device, training, trackers):
            reached = Loop(engine, distillation, checkpoints, evaluate, every, progress).run(reached)
        if sharded(device):
            take_whole(student, engine.judged)
        elif engine.average is not None:
            student.load_state_dict(engine.average.module.state_dict())
    return Trained(reached.log, reached.updates)


def _identity(
    student: nn.Module,
    teacher: nn.Module | None,
    training: Training,
    batches: int,
    functions: Mapping[str, Callable[..., Any] | None],
) -> Mapping[str, Any]:
    """Describe a run as JSON data; a run resumes from checkpoints of its own description only.

    Functions are known by their names.
    """
    plan = None
    if is_result(student):
        chosen = plan_data(plan_of(student), weights=False)
        plan = json_digest({name: value for name, value in chosen.items() if name not in MEASURED})
    return {name: _name_of(function) for name, function in functions.items() if function is not None} | {
        "student": layout_digest(student.state_dict()),
        "plan": plan,
        "teacher": None if teacher is None else weights_digest(teacher.state_dict()),
        "number of batches": batches,
        "training": asdict(training),
    }


def _name_of(function: Any) -> str:
    """Return a function's name, with the plain arguments that it is bound to; an object's is its class's."""
    if isinstance(function, functools.partial):
        given: dict[Any, Any] = {**dict(enumerate(function.args)), **function.keywords}
        plain = [f"{name}={value!r}" for name, value in given.items() if isinstance(value, PLAIN)]
        return f"{_name_of(function.func)}({', '.join(plain)})"
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}.{named.__qualname__}"


def _classes(student: nn.Module, loader: Any, log_probabilities: LogProbabilities | None) -> int:
    call = call_of(next(iter(loader)), student)
    with in_eval_mode(student), torch.no_grad():
        found = predictions_of(call.on(student), call.size, log_probabilities).classes
    if found is None:
        raise TrainingError("mixup and cutmix mix labels of classes, and the output is no class scores")
    return found.shape[-1]


@contextlib.contextmanager
def _as_it_was(student: nn.Module) -> Iterator[None]:
    """Put back each module's mode, and remove what an accelerator hangs on the model."""
    modes = {id(module): module.training for module in student.modules()}
    names = set(vars(student))
    try:
        yield
    finally:
        for module in student.modules():
            module.training = modes.get(id(module), module.training)
        for name in set(vars(student)) - names:
            delattr(student, name)
