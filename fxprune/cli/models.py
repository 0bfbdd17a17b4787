"""Models as the command line names them: a spec with its weights, or a saved folder."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import safetensors
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, fx, nn

import fxprune
from fxprune.cli.options import refuse
from fxprune.errors import FileError, FxpruneError, ModelSpecError, OptionError, first_line
from fxprune.finetune.heads import with_classes
from fxprune.result.saved import model_specs
from fxprune.result.saved.folder import RECORD, read_record
from fxprune.result.saved.hub import HUB, local_folder
from fxprune.result.saved.load import original_of
from fxprune.result.saved.recipe import is_safe

__all__ = [
    "Made",
    "build_of",
    "device_named",
    "is_saved",
    "loaded",
    "made",
    "original_with_weights",
    "refuse_overwriting",
    "subject",
]


@dataclass(frozen=True)
class Made:
    """A model on its device, and the keyword arguments for `analyze` that belong to it."""

    model: nn.Module
    options: dict[str, Any]


def subject(what: str, *, model: str | None, device: str = "cpu", **about: Any) -> Made:
    """Return what a command is about: a saved folder, or a model as `made` makes it.

    Raises:
        UsageError: an option was written that has an effect on the other kind only.
    """
    if is_saved(what):
        return Made(loaded(what, model, device=device, **about), {})
    refuse("it names the original of a saved FOLDER, and this is none", "model")
    return made(what, device=device, **about)


def loaded(folder: str, model: str | None, *, device: str, **about: Any) -> fx.GraphModule:
    """Return a saved folder's pruned model.

    Raises:
        UsageError: an option was written that says how another model is made.
    """
    refuse("a FOLDER has weights and an example of its own", *about)
    return fxprune.load(folder, model, device=device_named(device))


def original_with_weights(
    folder: str, model: str | None, *, pretrained: bool, checkpoint: str | None, device: str
) -> nn.Module:
    """Return the original of a saved folder with the library's published weights, or with those of a file.

    Raises:
        UsageError: the folder does not say which published weights are its original's.
    """
    if model is not None:
        return made(model, pretrained=pretrained, checkpoint=checkpoint, device=device).model
    where = device_named(device)
    if checkpoint is not None:
        refuse("--checkpoint has the weights", "pretrained")
        original = original_of(read_record(local_folder(folder)))
        _load_checkpoint(original, checkpoint)
        return original.to(where)
    recipe = read_record(local_folder(folder))["build"]
    if recipe is not None and is_safe(recipe) and recipe["options"]:
        changed = ", ".join(f"{name}={value}" for name, value in recipe["options"].items())
        raise click.UsageError(
            f"no library publishes weights of {recipe['from']} with {changed}: give --checkpoint"
        )
    if recipe is None or not is_safe(recipe) or recipe.get("config"):
        raise click.UsageError(
            "the folder does not say whose published weights its original has: give --model as well"
        )
    return made(recipe["from"], pretrained=True, device=device).model


def made(
    spec: str,
    *,
    pretrained: bool = False,
    checkpoint: str | None = None,
    input_size: str | None = None,
    capture: str = "auto",
    device: str = "cpu",
) -> Made:
    """Return the model that a spec names, with the weights asked for.

    Raises:
        ModelSpecError: there is no such model.
        FileError: the checkpoint does not fit it.
    """
    where = device_named(device)
    if pretrained and checkpoint:
        refuse("--checkpoint has the weights", "pretrained")
    model = _built(spec, pretrained)
    options: dict[str, Any] = {"capture": capture}
    if input_size is not None:
        options["example_inputs"] = _images(input_size)
    if checkpoint:
        model = _with_classes_of(checkpoint, model, options)
        _load_checkpoint(model, checkpoint)
    if input_size is not None:
        options["example_inputs"] = options["example_inputs"].to(where)
    return Made(model.to(where), options)


def _built(spec: str, pretrained: bool) -> nn.Module:
    """Build a model; whatever a library says of a name that it can't build becomes one kind of error."""
    try:
        return model_specs.build(spec, pretrained=pretrained)
    except FxpruneError:
        raise
    except Exception as error:
        library, _, name = spec.partition(":")
        known = model_specs.LISTS.get(library, list)()
        near = difflib.get_close_matches(name, known, n=3)
        close = f"; close are {', '.join(f'{library}:{n}' for n in near)}" if near else ""
        raise ModelSpecError(f"{spec} can't be built: {error}{close}") from error


def is_saved(name: str) -> bool:
    """Is this a folder that `save` wrote, here or on the Hub (and no spec)?"""
    return name.startswith(HUB) or (Path(name) / RECORD).exists()


def build_of(what: str) -> str | None:
    """Return the `build` that `save` needs: none for a library's model or a FOLDER, which it knows."""
    own = not is_saved(what) and what.partition(":")[0] not in model_specs.BUILDERS
    return what if own else None


def refuse_overwriting(out: str, *sources: str | None) -> None:
    """Refuse to write the result of a command over a folder that it reads.

    Raises:
        UsageError: `out` is one of the sources, by whatever name.
    """
    for source in sources:
        if source is not None and Path(source).exists() and Path(source).resolve() == Path(out).resolve():
            raise click.UsageError(f"--out {out} is the folder that is read, and would be lost: give another")


def device_named(name: str) -> torch.device:
    """Return a device by its name, once a tensor could be made there."""
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        said = first_line(error)
        raise OptionError(f"--device {name}: there is no such device here ({said})") from error
    return device


def _with_classes_of(path: str, model: nn.Module, options: Mapping[str, Any]) -> nn.Module:
    """Return a model with as many classes as a checkpoint has, where that is all in which the two differ.

    Whatever else differs is for loading to say.
    """
    try:
        with safetensors.safe_open(path, "pt") as file:
            shapes = {name: list(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118  # it is no mapping
    except SafetensorError:
        return model
    own = {name: list(t.shape) for name, t in model.state_dict().items()}
    other = [name for name, shape in shapes.items() if own.get(name) != shape]
    classes = {shapes[name][0] for name in other if shapes[name]}
    if own.keys() != shapes.keys() or len(classes) != 1:
        return model
    try:
        made = with_classes(model, *classes, **options)
    except FxpruneError:
        return model
    return made if all(list(t.shape) == shapes[name] for name, t in made.state_dict().items()) else model


def _load_checkpoint(model: nn.Module, path: str) -> None:
    """Load the weights of a safetensors file, all of them under the model's own names."""
    try:
        model.load_state_dict(safetensors.torch.load_file(path))
    except SafetensorError as error:
        raise FileError(
            f"{path} is no safetensors file ({error}); pickled checkpoints are not read"
        ) from error
    except RuntimeError as error:
        raise FileError(f"{path} does not fit {type(model).__name__}: {error}") from error


def _images(size: str) -> Tensor:
    try:
        shape = [int(part) for part in size.replace("x", ",").split(",")]
    except ValueError:
        shape = []
    if len(shape) != 3 or min(shape) < 1:
        raise click.BadParameter(
            f"{size!r}: write channels,height,width such as 3,224,224", param_hint="--input-size"
        )
    return torch.zeros(2, *shape)
