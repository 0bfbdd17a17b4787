"""Which images lie below a folder, and which subfolder each of them is of."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from fxprune.errors import DataError, first_line, listed
from fxprune.result.fingerprint import json_digest

__all__ = ["ImageFiles", "Photos", "image_files", "subfolders"]

# How data sets name the parts of themselves that are for training, for judging, and for the end.
SPLITS = {"train", "training", "val", "valid", "validation", "eval", "test", "testing"}


@dataclass(frozen=True)
class ImageFiles:
    """Files with the numbers of their classes, as timm's `ImageDataset` reads them."""

    samples: list[tuple[str, int]]
    folder: str = ""

    @property
    def digest(self) -> str:
        """Digest the names of the files, wherever the folder lies, and their numbers."""
        return json_digest([[os.path.relpath(path, self.folder), number] for path, number in self.samples])

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[IO[bytes], int]:
        path, number = self.samples[index]
        return open(path, "rb"), number


@dataclass(frozen=True)
class Photos:
    """Images as a model sees them, each with its number; no other takes the place of a broken one.

    colours: "RGB", or "L" for images of one channel.
    """

    files: ImageFiles
    colours: str
    transform: Callable[[Any], Any]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        """Read one.  Raises DataError where it is no whole image."""
        from PIL import Image

        file, number = self.files[index]
        try:
            with file:
                image = Image.open(file).convert(self.colours)
        except OSError as error:
            path = self.files.samples[index][0]
            raise DataError(f"{path} can't be read as an image: {first_line(error)}; take it away") from error
        return self.transform(image), number


def subfolders(folder: str) -> list[str]:
    """Name the subfolders, each of which is a class; without hidden ones, which other programs leave.

    Raises:
        DataError: they are the splits of a data set.
    """
    names = sorted(p.name for p in Path(folder).iterdir() if p.is_dir() and not p.name.startswith("."))
    _refuse_splits(folder, names)
    return names


def image_files(folder: str, classes: Mapping[str, int] | None) -> Any:
    """Find all images below a folder, by name; each is of the class of the subfolder that it is below.

    Args:
        classes: the number of each subfolder; None for images alone, wherever they are.

    Raises:
        DataError: there are none, or the folder has one subfolder for each split of a data set.
    """
    from timm.data.readers.img_extensions import get_img_extensions
    from timm.utils.misc import natural_key

    names = subfolders(folder)
    kinds = set(get_img_extensions())
    found = [
        (path, 0 if classes is None else classes[name])
        for name in (["", *names] if classes is None else classes)
        for path in _files_below(os.path.join(folder, name), nested=bool(name))
        if os.path.splitext(path)[1].lower() in kinds
    ]
    if not found:
        raise DataError(f"{folder}: there is no image below it ({', '.join(sorted(kinds))})")
    return ImageFiles(sorted(found, key=lambda sample: natural_key(sample[0])), folder)


def _files_below(folder: str, *, nested: bool) -> Iterator[str]:
    """Yield the paths of files that are not hidden; only those directly in the folder if not `nested`."""
    for place, inner, names in os.walk(folder, followlinks=True):
        yield from (os.path.join(place, name) for name in names if not name.startswith("."))
        inner[:] = [name for name in inner if nested and not name.startswith(".")]


def _refuse_splits(folder: str, names: list[str]) -> None:
    """Refuse train/ and val/ side by side: neither is a class, and together they are no data to learn from.

    Raises:
        DataError: all subfolders are named as splits, or two that are so named hold subfolders of one name.
    """
    splits = [name for name in names if name.lower() in SPLITS]
    if len(splits) < 2:
        return
    held = [{p.name for p in (Path(folder) / name).iterdir() if p.is_dir()} for name in splits]
    shared = any(a & b for i, a in enumerate(held) for b in held[:i])
    if splits == names or shared:
        raise DataError(
            f"{folder} holds the splits of a data set ({listed(splits)}), and no classes: give one of them, "
            f"such as {Path(folder) / splits[0]}"
        )
