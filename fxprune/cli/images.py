"""A folder of images as batches, with the transforms that a model was made for; with or without labels."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from fxprune.capture.example_of import example_of
from fxprune.cli.folders import Photos, image_files, subfolders
from fxprune.cli.preprocessing import Preprocessing
from fxprune.cli.transforms import transform_of
from fxprune.errors import DataError, listed
from fxprune.graph.modes import in_eval_mode
from fxprune.graph.tensors import device_of
from fxprune.show.reports.accuracy import class_scores

__all__ = [
    "Labelled",
    "batches_from",
    "classes_in",
    "labelled_images",
    "training_images",
]

IN_ORDER = "in alphabetical order"
SYNSET = re.compile(r"n\d{8}")  # how ImageNet names its classes


@dataclass(frozen=True)
class Labelled:
    """Images with their classes, read as they are asked for.

    count: of the images.  transform: how classes are known, and what is done to each image, in words.
    """

    dataset: Any
    count: int
    transform: str

    def batches(self, size: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images [batch, channels, height, width] and class numbers [batch]."""
        for samples in _batches(self.dataset, self.count, size):
            images, labels = zip(*samples, strict=True)
            yield torch.stack(images).to(device), torch.tensor(labels, device=device)


def batches_from(
    folder: str, model: nn.Module, options: dict[str, Any], pixels: Preprocessing, most: int, batch: int
) -> tuple[list[Tensor], str]:
    """Read at most `most` images, evenly spread over the folder, and say what is done to them.

    They are [batch, channels, height, width] each.

    Raises:
        DataError: timm is missing, there are no images, or the model takes none.
    """
    dataset, words = _dataset(folder, pixels, _image_of(model, options), None)
    count = min(most, len(dataset))
    samples = _batches(dataset, count, batch)
    return [torch.stack([sample[0] for sample in some]).to(device_of(model)) for some in samples], words


def labelled_images(
    folder: str,
    model: nn.Module,
    options: dict[str, Any],
    pixels: Preprocessing,
    most: int | None,
    learned: str | None = None,
) -> Labelled:
    """Read at most `most` images, evenly spread over the folder, each with its subfolder's class.

    learned: the folder whose classes the model learns; None if it knows them from elsewhere.

    Raises:
        DataError: as `batches_from`; or it is not certain which class of the model a subfolder means.
    """
    image = _image_of(model, options)
    with in_eval_mode(model), torch.no_grad():
        scores = class_scores(model(image), len(image))
    numbers, how = _numbers_as_learned(folder, learned, scores.shape[1], model)
    dataset, transform = _dataset(folder, pixels, image, numbers)
    count = min(most or len(dataset), len(dataset))
    return Labelled(dataset, count, f"classes {how}; {transform}")


def training_images(
    folder: str,
    model: nn.Module,
    options: dict[str, Any],
    pixels: Preprocessing,
    batch: int,
    workers: int,
    augment: dict[str, Any],
    labelled: bool = True,
) -> tuple[DataLoader[Any], str]:
    """Return the images of a folder with their classes, shuffled and augmented, and say what is done to them.

    Whole batches only.

    Args:
        labelled: else images alone, wherever they are below the folder.
        augment: of timm's `create_transform`; what is not given is as timm trains (crops and flips).

    Raises:
        DataError: as `labelled_images`; or there are fewer images than a batch has.
    """
    image = _image_of(model, options)
    numbers, how = None, "of no account"
    if labelled:
        with torch.no_grad(), in_eval_mode(model):
            scores = class_scores(model(image), len(image))
        numbers, how = class_numbers(subfolders(folder), scores.shape[1], model)
    dataset, words = _dataset(folder, pixels, image, numbers, augment)
    if len(dataset) < batch:
        raise DataError(f"--data: {len(dataset)} images are fewer than a batch of {batch}: see --batch")
    dataset.identity = f"{dataset.reader.digest} {sorted(augment.items())}"  # of which run these are
    collate = None if labelled else _images_alone
    loader = DataLoader(dataset, batch, shuffle=True, num_workers=workers, drop_last=True, collate_fn=collate)
    return loader, f"classes {how}; {words}"


def _images_alone(samples: Sequence[tuple[Tensor, Any]]) -> Tensor:
    return torch.stack([image for image, _ in samples])


def classes_in(folder: str) -> int:
    """Return how many subfolders there are."""
    return len(subfolders(folder))


def class_numbers(names: Sequence[str], classes: int, model: nn.Module) -> tuple[dict[str, int], str]:
    """Match each subfolder with an output of the model, and return how that was known.

    By number (`0`, `17`); by the names in a Hugging Face configuration; by ImageNet's synsets (`n01440764`)
    in timm's list for so many classes; in alphabetical order, where there are as many as the model has, and
    no numbers in them that others would order otherwise.  A guess would be a wrong accuracy.

    Raises:
        DataError: none of these holds.
    """
    if not names:
        raise DataError(
            "--data: there is no subfolder for each class, which says what is in its images (fxprune "
            "finetune learns from the teacher alone with --no-labels)"
        )
    if all(name.isdecimal() for name in names) and max(map(int, names)) < classes:
        return {name: int(name) for name in names}, "by number"
    known = getattr(getattr(model, "config", None), "label2id", None) or {}
    if set(names) <= set(known) and all(int(known[name]) < classes for name in names):
        return {name: int(known[name]) for name in names}, "by the model's names"
    if all(map(SYNSET.fullmatch, names)):
        synsets = _synsets(classes)
        if set(names) <= set(synsets):
            return {name: synsets.index(name) for name in names}, "by ImageNet's names"
    if len(names) == classes and sorted(names) == sorted(names, key=_natural):
        return {name: i for i, name in enumerate(sorted(names))}, IN_ORDER
    raise DataError(
        f"--data: {len(names)} subfolders ({listed(names)}) for a model of {classes} classes: name them by "
        f"the number of the class (0 to {classes - 1}), or make one for each class, in alphabetical order; "
        f"for classes that the model does not know, fxprune finetune has --new-head"
    )


def _numbers_as_learned(
    folder: str, learned: str | None, classes: int, model: nn.Module
) -> tuple[dict[str, int], str]:
    """Match each subfolder as those of another folder were, by name where that has it.

    Raises:
        DataError: as `class_numbers`; or one is known by its place in the alphabet, which is another's there.
    """
    names = subfolders(folder)
    if learned is None:
        return class_numbers(names, classes, model)
    known, how = class_numbers(subfolders(learned), classes, model)
    more = [name for name in names if name not in known]
    if names and not more:
        return {name: known[name] for name in names}, how
    found, how_found = class_numbers(names, classes, model)
    if IN_ORDER in (how, how_found):
        raise DataError(f"{folder} has classes that {learned} has not ({listed(more)}): give them one name")
    return found, how_found


def _natural(name: str) -> list[tuple[int, str]]:
    """Split a name into words and numbers, by which `a10` sorts after `a2`."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def _synsets(classes: int) -> list[str]:
    from timm.data import ImageNetInfo, infer_imagenet_subset

    subset = infer_imagenet_subset({"num_classes": classes})
    return ImageNetInfo(subset).label_names() if subset else []


def _image_of(model: nn.Module, options: dict[str, Any]) -> Tensor:
    """Make blank images of the size that the model takes: [batch, channels, height, width]."""
    example = example_of(model, options.get("example_inputs"))
    values = [*example.args, *example.kwargs.values()]
    if len(values) != 1 or not isinstance(values[0], Tensor) or values[0].ndim != 4:
        shapes = ", ".join(str(list(v.shape)) if isinstance(v, Tensor) else str(v) for v in values)
        raise DataError(f"--data: the model takes no images, but {shapes}: see data= of fxprune.prune")
    return values[0]


def _dataset(
    folder: str,
    pixels: Preprocessing,
    image: Tensor,
    classes: dict[str, int] | None,
    augment: dict[str, Any] | None = None,
) -> tuple[Any, str]:
    """Make a data set of the folder, with what is done to images, and that in words.

    Images are augmented, as timm does and as `augment` says, where that is given: by timm's data set, which
    takes the next image in place of a broken one.
    """
    try:
        from timm.data import ImageDataset
    except ImportError as error:
        raise DataError("--data needs timm for its transforms: pip install timm") from error
    transform, words = transform_of(pixels, tuple(image.shape[1:]), augment)
    files, colours = image_files(folder, classes), "L" if image.shape[1] == 1 else "RGB"
    if augment is None:
        return Photos(files, colours, transform), words
    return ImageDataset(folder, reader=files, input_img_mode=colours, transform=transform), words


def _batches(dataset: Any, count: int, batch: int) -> Iterator[list[Any]]:
    """Load `count` samples evenly spread over the data set, and yield them in lists of `batch`."""
    chosen = [i * len(dataset) // count for i in range(count)]
    for start in range(0, count, batch):
        yield [dataset[i] for i in chosen[start : start + batch]]
