"""`fxprune evaluate`: accuracy on labelled images, dense beside pruned."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any

import click
from torch import Tensor, nn

import fxprune
from fxprune.cli.images import labelled_images
from fxprune.cli.models import is_saved, made, original_with_weights, subject
from fxprune.cli.options import data_options, given, original_option, output_options, refuse
from fxprune.cli.preprocessing import normalisation_options, preprocessing_of
from fxprune.cli.progress import progress
from fxprune.graph.tensors import device_of
from fxprune.show.reports.accuracy import Accuracy, accuracies

__all__ = ["evaluate"]


@click.command(
    epilog="""\b
Examples:
  fxprune evaluate deit-half --data imagenet/val --pretrained
  fxprune evaluate timm:deit_small_patch16_224 --pretrained --data imagenet/val --images 1000
  fxprune evaluate own-half --model mymodels:make --checkpoint best.safetensors --data photos/
"""
)
@click.argument("what", metavar="MODEL|FOLDER")
@click.option("--ratio", type=float, help="For a MODEL: prune it by so much, and evaluate both.")
@normalisation_options
@original_option
@data_options
@output_options
def evaluate(
    what: str,
    ratio: float | None,
    data: str,
    images: int | None,
    batch: int,
    model: str | None,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Count right answers of MODEL, or of a saved FOLDER, on a folder of labelled images.

    The original of a FOLDER stands beside it where its weights are given by --pretrained or --checkpoint.
    A subfolder of --data is named by the number of its class, as ImageNet names it, or stands in
    alphabetical order.  Images are resized and normalised as is recorded with the model, in timm's
    configuration or Hugging Face's image processor, unless --mean and --std say otherwise.
    """
    with progress(quiet) as step:
        step(f"building {what}")
        if is_saved(what):
            models = _saved(what, model, options)
            about: dict[str, Any] = {}
        else:
            refuse("it names the original of a saved FOLDER, and this is none", "model")
            dense = made(what, **options)
            about = dense.options
            models = {"dense": dense.model}
            if ratio is not None:
                models["pruned"] = fxprune.prune(dense.model, ratio, **about)
        first = next(iter(models.values()))
        pixels = preprocessing_of(what, first, mean, std)
        labelled = labelled_images(data, first, about, pixels, images)
        device = device_of(first)
        step(f"evaluating {labelled.count} images")
        batches = _told(labelled.batches(batch, device), labelled.count, step)
        found = dict(zip(models, accuracies([*models.values()], batches), strict=True))
    if as_json:
        record = {name: asdict(a) for name, a in found.items()}
        click.echo(json.dumps({"data": data, "transform": labelled.transform, **record}, indent=1))
    else:
        click.echo(_table(found))
        click.echo(f"{labelled.count} images of {data}: {labelled.transform}")


def _saved(folder: str, model: str | None, options: dict[str, Any]) -> dict[str, nn.Module]:
    """Return the saved model, with its original before it where that has weights."""
    refuse("a FOLDER is pruned already", "ratio")
    refuse("a FOLDER has an example of its own", "input_size")
    pruned = subject(folder, model=model, device=options["device"]).model
    if not (given("pretrained") or given("checkpoint")):
        return {"pruned": pruned}
    weights = {name: options[name] for name in ("pretrained", "checkpoint", "device")}
    return {"dense": original_with_weights(folder, model, **weights), "pruned": pruned}


def _told(batches: Iterable[tuple[Tensor, Tensor]], count: int, step: Any) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the batches, and say at every tenth of the way how many images are done."""
    done = tenths = 0
    for images, labels in batches:
        yield images, labels
        done += len(labels)
        if done * 10 // count > tenths:
            tenths = done * 10 // count
            step(f"{done} of {count} images")


def _table(found: dict[str, Accuracy]) -> str:
    lines = [f"{'':8}{'top-1':>8}{'top-5':>8}"]
    for name, a in found.items():
        top5 = "-" if a.top5 is None else f"{a.top5:.1%}"
        lines.append(f"{name:8}{a.top1:>8.1%}{top5:>8}")
    return "\n".join(lines)
