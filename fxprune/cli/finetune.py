"""`fxprune finetune`: train a saved model beside its original; or prune in steps, and train after each."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import click
import torch
from torch import nn

import fxprune
from fxprune.cli.images import labelled_images, training_images
from fxprune.cli.models import is_saved, made, original_with_weights, subject
from fxprune.cli.options import given, original_option, output_options, refuse, size_option, weights_options
from fxprune.cli.progress import progress
from fxprune.finetune.estimate import estimate
from fxprune.result.saved import model_specs
from fxprune.show.reports.accuracy import accuracies

__all__ = ["finetune"]

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
@click.option("--resume", is_flag=True, help="Go on from the last checkpoint in --out, if there is one.")
@click.option("--dry-run", is_flag=True, help="Say what it would take, and write nothing.")
@original_option
@weights_options
@size_option
@output_options
def finetune(
    what: str,
    data: str,
    val: str | None,
    out: str,
    ratio: float,
    steps: int,
    batch: int,
    workers: int,
    augment: str | None,
    erase: float,
    every: int,
    resume: bool,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
    **others: Any,
) -> None:
    """Train a saved FOLDER beside its original; or prune MODEL in steps and train after each.

    The original is the teacher, with weights of --pretrained or --checkpoint; --kl 0 --hidden 0 trains a
    FOLDER without one.  Checkpoints and a line of JSON an epoch (log.jsonl) stand in OUT/run: a run that was
    killed goes on with --resume.  Accelerate chooses the device.
    """
    training = fxprune.Training(**{field.name: others.pop(field.name) for field in fields(fxprune.Training)})
    saved = is_saved(what)
    if saved:
        refuse("a FOLDER is pruned already", "ratio", "steps")
        refuse("a FOLDER has an example of its own", "input_size")
    policy = {"auto_augment": augment, "re_prob": erase}
    with progress(quiet) as step:
        step(f"building {what}")
        student, teacher, about = _models(what, training, others)
        batches = training_images(data, student, about, batch, workers, policy)
        judge = None if val is None else _judge(val, student, about, batch)
        if dry_run:
            step("trying a few batches")
            tried = student if saved else fxprune.prune(student, ratio, **about)
            found = estimate(tried, teacher, batches, training)
            click.echo(json.dumps(asdict(found)) if as_json else str(found))
            return
        step(f"training on {len(batches)} batches of {data}")
    folder = Path(out) / "run"
    options: dict[str, Any] = {"evaluate": judge, "resume": resume, "every": every, "progress": not quiet}
    if saved:
        log = fxprune.distill(student, teacher, batches, training, folder=folder, **options).log
    else:
        student = fxprune.prune_and_distill(
            student, batches, ratio, training, steps=steps, folder=folder, **options, **about
        )
        log = _logged(folder / f"step-{steps}")
    with progress(quiet) as step:
        step(f"writing {out}")
        own = not saved and what.partition(":")[0] not in model_specs.BUILDERS
        fxprune.save(student.cpu(), out, build=what if own else None)
    if as_json:
        click.echo(json.dumps({"out": out, "training": asdict(training), "log": log}, indent=1))
    elif not quiet:
        click.echo(_table(log))
        click.echo(f"saved to {out}")


def _models(
    what: str, training: fxprune.Training, options: dict[str, Any]
) -> tuple[nn.Module, nn.Module | None, dict[str, Any]]:
    """Return the student (of a MODEL, what it is pruned from), its teacher, and how the model is called.

    Raises:
        UsageError: there is no telling what weights the teacher has.
    """
    model = options["model"]
    weights = {name: options[name] for name in ("pretrained", "checkpoint")}
    if not is_saved(what):
        refuse("it names the original of a saved FOLDER, and this is none", "model")
        dense = made(what, **weights, input_size=options["input_size"])
        return dense.model, dense.model, dense.options
    student = subject(what, model=model).model
    if training.kl == 0 and training.hidden == 0:
        refuse("--kl 0 --hidden 0 needs no teacher", "pretrained", "checkpoint")
        return student, None, {}
    if not (given("pretrained") or given("checkpoint")):
        raise click.UsageError(
            "the teacher needs weights: give --pretrained or --checkpoint, or train without one (--kl 0)"
        )
    return student, original_with_weights(what, model, **weights, device="cpu"), {}


def _judge(folder: str, model: nn.Module, about: dict[str, Any], batch: int) -> Any:
    """Return what measures the accuracy of a model in training on a folder of images."""
    labelled = labelled_images(folder, model, about, None)

    def judge(student: nn.Module) -> Mapping[str, float]:
        device = next((p.device for p in student.parameters()), torch.device("cpu"))
        (found,) = accuracies([student], labelled.batches(batch, device))
        return {"top1": found.top1} | ({} if found.top5 is None else {"top5": found.top5})

    return judge


def _logged(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def _table(log: list[dict[str, Any]]) -> str:
    names = [name for name in log[-1] if name not in ("updates", "seconds")]
    rows = [names, *([_figure(line[name]) for name in names] for line in log)]
    return "\n".join("".join(f"{text:>10}" for text in row) for row in rows)


def _figure(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.4g}"
