"""`fxprune finetune`: train a saved model beside its original; or prune in steps, and train after each."""

from __future__ import annotations

import functools
import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import click
import safetensors.torch
from torch import nn

import fxprune
from fxprune.cli.images import Labelled, classes_in, labelled_images, training_images
from fxprune.cli.models import build_of, is_saved, refuse_overwriting
from fxprune.cli.options import original_option, output_options, refuse, size_option, weights_options
from fxprune.cli.preprocessing import normalisation_options
from fxprune.cli.progress import progress, silenced
from fxprune.cli.teaching import Lesson, lesson, teaching_options
from fxprune.finetune.estimate import Estimate, estimate
from fxprune.graph.tensors import device_of
from fxprune.result.files import write_whole
from fxprune.result.saved.save import save_with_images
from fxprune.show.reports.accuracy import accuracies

__all__ = ["finetune"]

DENSE = "dense.safetensors"
USUAL = fxprune.Training()
HELP = {
    "epochs": "Passes over the data; of each step.",
    "lr": "The learning rate's peak.",
    "min_lr": "The learning rate at the end.",
    "warmup": "Epochs in which it rises.",
    "opt": "An optimiser of timm.",
    "sched": "A schedule of timm.",
    "weight_decay": "Of matrices.",
    "clip": "The largest norm of a gradient; 0 for any.",
    "kl": "Weight of the divergence from the original; 0 for no teacher.",
    "hidden": "Weight of hidden states' error.",
    "mixup": "timm's alpha.",
    "cutmix": "timm's alpha.",
    "smoothing": "Of labels.",
    "ema": "Decay of the average of weights.",
    "accumulation": "Batches to an update.",
    "precision": "no, bf16, fp16 or fp8.",
    "seed": "Of order, augmentation and dropout.",
}


def training_options(function: Any) -> Any:
    """Decorate a command with an option for each field of `Training`, which has its default."""
    for field in reversed(fields(fxprune.Training)):
        usual = getattr(USUAL, field.name)
        name = f"--{field.name.replace('_', '-')}"
        option = click.option(name, type=type(usual), default=usual, show_default=True, help=HELP[field.name])
        function = option(function)
    return function


@click.command(
    epilog="""\b
Examples:
  fxprune finetune deit-half --pretrained --data imagenet/train --val imagenet/val --out deit-tuned
  fxprune finetune timm:deit_small_patch16_224 --pretrained --steps 3 --data photos/ --out small
  fxprune finetune timm:vit_small_patch16_224 --pretrained --new-head --data flowers/ --out flowers-small
  accelerate launch -m fxprune finetune deit-half --pretrained --data photos/ --out tuned --resume
"""
)
@click.argument("what", metavar="MODEL|FOLDER")
@click.option(
    "--data",
    required=True,
    type=click.Path(exists=True, file_okay=False),
    help="A folder with a subfolder of images for each class, to train on.",
)
@click.option("--no-labels", is_flag=True, help="Learn from the teacher alone, on any images below --data.")
@click.option(
    "--val", type=click.Path(exists=True, file_okay=False), help="Such a folder to judge each epoch by."
)
@click.option("--out", required=True, type=click.Path(file_okay=False), help="The folder to write.")
@click.option(
    "--ratio", type=float, default=0.5, show_default=True, help="Of a MODEL: the fraction to remove."
)
@click.option(
    "--steps",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Of a MODEL: prune and train so often.",
)
@click.option("--batch", type=click.IntRange(1), default=32, show_default=True, help="Images in a batch.")
@click.option(
    "--workers", type=click.IntRange(0), default=0, show_default=True, help="Processes that read images."
)
@click.option("--augment", metavar="POLICY", help="timm's policy, such as rand-m9-mstd0.5-inc1.")
@click.option(
    "--erase", type=float, default=0.0, show_default=True, help="Probability of timm's random erasing."
)
@click.option(
    "--every", type=click.IntRange(0), default=0, help="A checkpoint after so many batches as well."
)
@training_options
@normalisation_options
@teaching_options
@click.option(
    "--log-with", multiple=True, metavar="TRACKER", help="Of Accelerate, e.g. tensorboard; may be repeated."
)
@click.option("--resume", is_flag=True, help="Go on from the last checkpoint in --out, if there is one.")
@click.option("--dry-run", is_flag=True, help="Say what it would take, and write nothing.")
@original_option
@weights_options
@size_option
@output_options
def finetune(
    what: str,
    data: str,
    no_labels: bool,
    val: str | None,
    out: str,
    ratio: float,
    steps: int,
    batch: int,
    workers: int,
    augment: str | None,
    erase: float,
    every: int,
    new_head: bool,
    log_with: tuple[str, ...],
    resume: bool,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
    **others: Any,
) -> None:
    """Train a saved FOLDER beside its original; or prune MODEL in steps and train after each.

    The original is the teacher, with weights of --pretrained or --checkpoint; --teacher names another, and
    --kl 0 --hidden 0 trains a FOLDER without one.  With --new-head a MODEL first learns the classes of
    --data itself, from labels (its weights go to OUT/dense.safetensors), then teaches them.  Checkpoints and
    a line of JSON an epoch (log.jsonl) stand in OUT/run: a run that was killed goes on with --resume.
    Accelerate chooses the device.
    """
    training = fxprune.Training(**{field.name: others.pop(field.name) for field in fields(fxprune.Training)})
    if is_saved(what):
        refuse("a FOLDER is pruned already", "ratio", "steps")
        refuse("a FOLDER has an example of its own", "input_size")
    if no_labels:
        refuse("--no-labels leaves out what they are about", "new_head", "mixup", "cutmix", "smoothing")
        if training.kl == 0 and training.hidden == 0:
            raise click.UsageError("--no-labels learns from a teacher alone, and --kl 0 --hidden 0 has none")
    refuse_overwriting(out, what, others["teacher"])
    policy = {"auto_augment": augment, "re_prob": erase}
    quiet = quiet or int(os.environ.get("RANK", "0")) > 0  # the first of several processes speaks
    with progress(quiet) as step:
        step(f"building {what}")
        models = lesson(what, training, classes_in(data) if new_head else None, others)
        student, about = models.student, models.about
        pixels = models.pixels
        images = training_images(data, student, about, pixels, batch, workers, policy, not no_labels)
        batches, words = images
        learned = None if no_labels else data
        if dry_run:
            refuse("--dry-run writes nothing", "log_with", "resume", "every")
            step("trying a few batches")
            judging = 0.0 if val is None else _judging_takes(val, models, batch, learned)
            found = _estimate(models, batches, training, judging, ratio, steps)
            click.echo(json.dumps(asdict(found)) if as_json else str(found))
            return
        judge = None
        if val is not None:
            judge = _judge(labelled_images(val, student, about, pixels, None, learned), batch)
        step(f"training on {len(batches)} batches of {data}: {words}")
    options: dict[str, Any] = {"evaluate": judge, "resume": resume, "every": every, "progress": not quiet}
    options["trackers"] = log_with
    with silenced(quiet):
        student, log = _trained(models, batches, training, Path(out), ratio, steps, options)
    if not _first():
        return
    with progress(quiet) as step:
        step(f"writing {out}")
        save_with_images(student.cpu(), out, build_of(what), pixels.text)
    if as_json:
        click.echo(json.dumps({"out": out, "training": asdict(training), "log": log}, indent=1))
    elif not quiet:
        click.echo(_table(log))
        click.echo(f"saved to {out}")


def _trained(
    models: Lesson,
    batches: Any,
    training: fxprune.Training,
    out: Path,
    ratio: float,
    steps: int,
    options: dict[str, Any],
) -> tuple[nn.Module, list[dict[str, Any]]]:
    """Train a saved student, or prune and train a MODEL; returns what came out, and a record of each epoch.

    `options` are those that every run takes; checkpoints go to a folder of each below `out`.
    """
    student, folder, log = models.student, out / "run", list[dict[str, Any]]()
    if models.dense_first:
        alone = replace(training, kl=0.0, hidden=0.0)
        log += fxprune.distill(student, None, batches, alone, folder=folder / "dense", **options).log
        weights = {name: t.cpu().contiguous().clone() for name, t in student.state_dict().items()}
        if _first():
            write_whole(out / DENSE, safetensors.torch.save(weights))
    if models.saved:
        log += fxprune.distill(student, models.teacher, batches, training, folder=folder, **options).log
        return student, log
    where: dict[str, Any] = {"folder": folder, **options, **models.about}
    pruned = fxprune.prune_and_distill(
        student, batches, ratio, training, steps=steps, teacher=models.teacher, **where
    )
    return pruned, log + _logged(folder / f"step-{steps}")


def _first() -> bool:
    """Return whether this is the process that writes, of those that train together."""
    from accelerate import PartialState

    return bool(PartialState().is_main_process)


def _estimate(
    models: Lesson, batches: Any, training: fxprune.Training, judging: float, ratio: float, steps: int
) -> Estimate:
    """Estimate a run with all its parts; a MODEL is pruned as far as each step would."""
    student, teacher = models.student, models.teacher
    parts: list[tuple[nn.Module, nn.Module | None, fxprune.Training]] = []
    if models.saved:
        parts.append((student, teacher, training))
    else:
        if models.dense_first:
            parts.append((student, None, replace(training, kl=0.0, hidden=0.0)))
        for i in range(1, steps + 1):
            parts.append((fxprune.prune(student, ratio * i / steps, **models.about), teacher, training))
    found = [estimate(model, by, batches, how, judging=judging) for model, by, how in parts]
    return functools.reduce(Estimate.and_then, found)


def _judging_takes(folder: str, models: Lesson, batch: int, learned: str | None) -> float:
    """Measure how long it takes to judge a model by all images of a folder, on a few batches of them."""
    about = models.student, models.about, models.pixels
    total, few = (labelled_images(folder, *about, most, learned) for most in (None, 4 * batch))
    judge = _judge(few, batch)
    began = time.perf_counter()
    judge(models.student)
    return (time.perf_counter() - began) * total.count / few.count


def _judge(labelled: Labelled, batch: int) -> Any:
    """Return what measures the accuracy of a model in training on labelled images."""

    def judge(student: nn.Module) -> Mapping[str, float]:
        (found,) = accuracies([student], labelled.batches(batch, device_of(student)))
        return {"top1": found.top1} | ({} if found.top5 is None else {"top5": found.top5})

    return judge


def _logged(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def _table(log: list[dict[str, Any]]) -> str:
    """Return a line for each epoch; the parts of a run may have learned from other losses."""
    names = list(dict.fromkeys(name for line in log for name in line if name not in ("updates", "seconds")))
    rows = [names, *([_figure(line.get(name)) for name in names] for line in log)]
    return "\n".join("".join(f"{text:>10}" for text in row) for row in rows)


def _figure(value: float | None) -> str:
    return "" if value is None else str(value) if isinstance(value, int) else f"{value:.4g}"
