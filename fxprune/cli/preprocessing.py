"""What is done to a photo before a model sees it: as its makers recorded, or as the user says."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import click
from torch import nn

from fxprune.cli.options import Decorator, options
from fxprune.cli.processors import Channels, Processor
from fxprune.errors import DataError, listed
from fxprune.result.saved.folder import PREPROCESSOR, RECORD, read_record, settle_images
from fxprune.result.saved.hub import local_folder

__all__ = ["Preprocessing", "normalisation_options", "preprocessing_of"]

# What a file says that timm's transforms say as well; how images are read is one way here.
SAID_BY_TIMM = {"size", "crop_size", "resample", "image_mean", "image_std", "rescale_factor", "data_format"}
SAID_BY_TIMM |= {
    "do_resize",
    "do_rescale",
    "do_normalize",
    "do_center_crop",
    "do_convert_rgb",
    "default_to_square",
}
RESAMPLE = {0: "nearest", 2: "bilinear", 3: "bicubic"}  # PIL's numbers, in timm's words


def _numbers(context: click.Context, option: click.Parameter, text: str | None) -> tuple[float, ...] | None:
    """Parse `0.5,0.5,0.5`; one number is that of every channel."""
    try:
        numbers = None if text is None else tuple(map(float, text.split(",")))
    except ValueError:
        raise click.BadParameter("write a number for each channel, such as 0.485,0.456,0.406") from None
    if numbers and option.name == "std" and min(numbers) <= 0:
        raise click.BadParameter("a standard deviation is positive")
    return numbers


normalisation_options: Decorator = options(
    click.option(
        "--mean", metavar="R,G,B", callback=_numbers, help="Of channels from 0 to 1; else as was recorded."
    ),
    click.option("--std", metavar="R,G,B", callback=_numbers, help="Their standard deviations."),
)
"""How images of --data are normalised."""


@dataclass(frozen=True)
class Preprocessing:
    """How images are resized, cropped and normalised.

    config: of timm's `create_transform`: mean, std, interpolation, crop_pct, crop_mode, ...
    origin: who says so, in words.
    file: a Hugging Face `preprocessor_config.json` that says the same, to be kept; None where the model does.
    given: which of mean and std the user said, who counts channels as the model does.
    processor: what follows such a file, in place of timm's transform; None where no class is known for it.
    """

    config: Mapping[str, Any]
    origin: str
    file: Mapping[str, Any] | None
    given: tuple[str, ...] = ()
    processor: Processor | None = None

    @property
    def channels(self) -> Channels:
        """What becomes of a pixel of an image in colours."""
        if self.processor is not None:
            return self.processor.channels()
        return Channels.of(self.config["mean"], self.config["std"])

    @property
    def text(self) -> str | None:
        """The file's text, to be saved beside a model, for the next command; None for no file."""
        return None if self.file is None else json.dumps(self.file, indent=1) + "\n"


def preprocessing_of(
    what: str, model: nn.Module, mean: Sequence[float] | None = None, std: Sequence[float] | None = None
) -> Preprocessing:
    """Return what images need: as given; else by the image processor beside the weights; else by timm.

    Args:
        what: the saved FOLDER, or the spec, that the model was made from.
        mean, std: of each channel, from 0 to 1; None as was recorded.

    Raises:
        DataError: the image processor's file can't be read.
    """
    config: dict[str, Any] = {}
    recorded = next(
        (found for at in (model, getattr(model, "config", None)) if (found := _recorded_in(at))), None
    )
    with contextlib.suppress(ImportError):  # reading images says what is missing
        from timm.data import resolve_model_data_config

        config = resolve_model_data_config(model, pretrained_cfg=recorded)
    origin = "recorded with the model" if recorded else "timm's usual ones, none are recorded"
    path = _processor_of(what)
    record = None if path is None else _read(path)
    processor = None
    if path is not None and record is not None:
        processor = _processor_in(path, record)
        origin = f"of {PREPROCESSOR}"
        if record.get("resample") in RESAMPLE:
            config["interpolation"] = RESAMPLE[record["resample"]]
        if processor is None:
            config |= _in_words_of_timm(record)
    if mean is not None or std is not None:
        if processor is not None and (mean is None or std is None):
            config |= _as_in_file(processor.channels())
        config |= {"mean": mean or config.get("mean"), "std": std or config.get("std")}
        said: dict[str, Any] = {"do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True}
        said |= {"image_mean": list(config["mean"]), "image_std": list(config["std"])}
        record = {**(record or {}), **said}
        processor = None if processor is None else replace(processor, said=said)
        origin = "as given"
    given = tuple(name for name, values in (("mean", mean), ("std", std)) if values is not None)
    return Preprocessing(config, origin, record, given, processor)


def _recorded_in(holder: object) -> dict[str, Any] | None:
    """Return timm's record, which a model holds, or its configuration where another library wraps it."""
    found: Any = getattr(holder, "pretrained_cfg", None)
    if hasattr(found, "to_dict"):
        return cast("dict[str, Any]", found.to_dict())
    return dict(found) if isinstance(found, Mapping) else None


def _as_in_file(channels: Channels) -> dict[str, Any]:
    """Return mean and standard deviation of each channel of a photo."""
    return {"mean": channels.sorted().mean, "std": channels.sorted().std}


def _processor_of(what: str) -> Path | None:
    """Find the image processor's file: in a saved folder, or with a checkpoint of Hugging Face's."""
    library, _, name = what.partition(":")
    if library != "hf":
        folder = local_folder(what) if what.startswith("hf-hub:") else Path(what)
        if (folder / RECORD).is_file():
            settle_images(folder, read_record(folder))
        return folder / PREPROCESSOR if (folder / PREPROCESSOR).is_file() else None
    if "/" not in name:  # a kind of model, and no checkpoint
        return None
    from transformers.utils import cached_file

    try:
        return Path(str(cached_file(name, PREPROCESSOR)))
    except OSError:  # it has none
        return None


def _processor_in(path: Path, record: dict[str, Any]) -> Processor | None:
    """Return what follows a file, and add its class to the record; None where neither names one."""
    if any(name in record for name in ("image_processor_type", "feature_extractor_type")):
        return Processor(str(path.parent))
    if not (path.parent / "config.json").is_file():
        return None
    try:
        processor = Processor(str(path.parent))
        record["image_processor_type"] = processor.name  # by the model's configuration, which is not kept
    except DataError:
        return None
    return processor


def _read(path: Path) -> dict[str, Any]:
    try:
        return cast("dict[str, Any]", json.loads(path.read_text()))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} can't be read: {error}") from error


def _in_words_of_timm(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a file without a class says of pixels from 0 to 1, as timm says it.

    Raises:
        DataError: it says more.
    """
    size, crop = record.get("size"), record.get("crop_size")
    more = [name for name, value in record.items() if value not in (None, False) and name not in SAID_BY_TIMM]
    if more or record.get("do_resize") is False:
        raise DataError(
            f"{PREPROCESSOR} says {listed(more or ['do_resize'])}, and not which class follows it "
            f"(image_processor_type): add that, or give --mean and --std beside a file without it"
        )
    scale = 255 * record.get("rescale_factor", 1 / 255) if record.get("do_rescale", True) else 255.0
    normal = record.get("do_normalize", True)
    mean = record.get("image_mean") if normal else [0.0]
    std = record.get("image_std") if normal else [1.0]
    found: dict[str, Any] = {}
    if mean is not None and std is not None:
        found = {"mean": tuple(m / scale for m in mean), "std": tuple(s / scale for s in std)}
    return found | _crop(size, crop, bool(record.get("do_center_crop")))


def _crop(size: Any, crop: Any, cropped: bool) -> dict[str, Any]:
    """Return which part of a photo is shown: that of two sizes, or all."""
    edge = size.get("shortest_edge") if isinstance(size, Mapping) else size
    if cropped and edge and crop:
        side = crop.get("height") if isinstance(crop, Mapping) else crop
        return {"crop_pct": side / edge, "crop_mode": "center"} if side else {}
    if not cropped and (
        isinstance(size, int) or (isinstance(size, Mapping) and {"height", "width"} <= set(size))
    ):
        return {"crop_pct": 1.0, "crop_mode": "squash"}
    return {}
