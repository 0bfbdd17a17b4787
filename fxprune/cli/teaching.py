"""Who learns, and who teaches: the models of `fxprune finetune`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import click
import torch
from torch import nn

import fxprune
from fxprune.cli.models import is_saved, made, original_with_weights, subject
from fxprune.cli.options import given, options, refuse
from fxprune.cli.preprocessing import Preprocessing, preprocessing_of
from fxprune.finetune.heads import with_classes
from fxprune.finetune.renormalised import Renormalised
from fxprune.finetune.training import Training
from fxprune.result.saved import model_specs

__all__ = ["Lesson", "lesson", "teaching_options"]

teaching_options = options(
    click.option(
        "--teacher", metavar="MODEL|FOLDER", help="Another teacher; a MODEL with its published weights."
    ),
    click.option(
        "--teacher-checkpoint",
        type=click.Path(exists=True, dir_okay=False),
        metavar="FILE.safetensors",
        help="Of a MODEL that teaches: with these weights.",
    ),
    click.option(
        "--new-head",
        is_flag=True,
        help="A new last layer, for the classes of --data; a MODEL learns it first.",
    ),
)
"""Who teaches, and what."""


@dataclass(frozen=True)
class Lesson:
    """Models as they stand before the first batch.

    student: what is trained, or, of a MODEL, what is pruned first.
    teacher: what it is to be like; None for labels alone.
    saved: the student is pruned already.
    dense_first: a MODEL's new head is trained from labels before anything is pruned.
    pixels: what is done to the student's images.
    about: the keyword arguments for `analyze` that belong to the student; none where it is saved.
    """

    student: nn.Module
    teacher: nn.Module | None
    pixels: Preprocessing
    saved: bool
    dense_first: bool
    about: dict[str, Any] = field(default_factory=dict)


def lesson(what: str, training: Training, classes: int | None, named: Mapping[str, Any]) -> Lesson:
    """Make the student and its teacher.

    Args:
        classes: for a new head; None to keep the one that is there.
        named: the options that name models and weights, as they were written.

    Raises:
        UsageError: an option would have no effect, or there is no telling what weights the teacher has.
    """
    saved, alone = is_saved(what), training.kl == 0 and training.hidden == 0
    if alone:
        refuse("--kl 0 --hidden 0 needs no teacher", "teacher", "teacher_checkpoint")
    other = _other(named["teacher"], named["teacher_checkpoint"])
    if saved:
        student, about = subject(what, model=named["model"]).model, {}
    else:
        refuse("it names the original of a saved FOLDER, and this is none", "model")
        if classes is None and other is None and not alone:
            _refuse_a_blank_teacher(what)
        with torch.random.fork_rng():
            torch.manual_seed(training.seed)  # of weights that are neither published nor in a file
            dense = made(what, **{name: named[name] for name in ("pretrained", "checkpoint", "input_size")})
        student, about = dense.model, dense.options
    original = _original(what, alone, classes, named) if saved and other is None else None
    if saved and other is not None:
        refuse("--teacher teaches, and not the original", "pretrained", "checkpoint")
    if classes is not None:
        with torch.random.fork_rng():
            torch.manual_seed(training.seed)
            student = with_classes(student, classes, **about)
    pixels = preprocessing_of(what, student, named["mean"], named["std"])
    teacher = original if other is None else _fed(other, pixels, preprocessing_of(named["teacher"], other))
    if teacher is None and not (saved or alone):
        teacher = student
    return Lesson(student, teacher, pixels, saved, classes is not None and not saved, about)


def _refuse_a_blank_teacher(what: str) -> None:
    """Refuse a MODEL of a library without weights; a factory of the user's own may have loaded them."""
    if what.partition(":")[0] in model_specs.BUILDERS and not (given("pretrained") or given("checkpoint")):
        raise click.UsageError(
            f"{what} teaches what it is pruned to, and has no weights: give --pretrained or --checkpoint, "
            f"--new-head to train it first, another --teacher, or --kl 0 for none"
        )


def _other(teacher: str | None, checkpoint: str | None) -> nn.Module | None:
    """Return a teacher of the user's own, with the weights that it has."""
    if teacher is None:
        refuse("it is of a MODEL given by --teacher", "teacher_checkpoint")
        return None
    if is_saved(teacher):
        refuse("a FOLDER that teaches has weights of its own", "teacher_checkpoint")
        return fxprune.load(teacher)
    return made(teacher, pretrained=checkpoint is None, checkpoint=checkpoint).model


def _original(folder: str, alone: bool, classes: int | None, named: Mapping[str, Any]) -> nn.Module | None:
    """Return the original of a saved folder, with the weights that the user names; None to learn alone."""
    if alone:
        refuse("--kl 0 --hidden 0 needs no teacher", "pretrained", "checkpoint")
        return None
    if classes is not None:
        raise click.UsageError(
            "the original knows no classes of --new-head: learn them from labels alone (--kl 0), or from a "
            "--teacher that knows them"
        )
    if not (given("pretrained") or given("checkpoint")):
        raise click.UsageError(
            "the teacher needs weights: give --pretrained or --checkpoint, or another --teacher, or train "
            "without one (--kl 0)"
        )
    weights = {name: named[name] for name in ("pretrained", "checkpoint")}
    return original_with_weights(folder, named["model"], **weights, device="cpu")


def _fed(teacher: nn.Module, pixels: Preprocessing, own: Preprocessing) -> nn.Module:
    """Return the teacher for images that are normalised as the student's are, and not as its own."""
    ours, theirs = pixels.channels, own.channels
    count = max(len(ours.order), len(theirs.order))
    ours, theirs = ours.of_all(count), theirs.of_all(count)
    if ours == theirs:
        return teacher
    order = [ours.order.index(c) for c in theirs.order]
    mean, std = ([some[i] for i in order] for some in (ours.mean, ours.std))
    return Renormalised(teacher, mean, std, theirs.mean, theirs.std, order)
