"""The JSON records of a folder and of an original, field by field.

A file was compared with its digest when it was read.  What decides which code runs (layers, plans, an own
class) is `object` until the function that reads it has checked it.
"""

from __future__ import annotations

import keyword
from collections.abc import Mapping, Sequence
from typing import Literal, TypedDict, TypeVar

import torch

__all__ = ["Call", "Dtypes", "FolderRecord", "Made", "Modes", "Options", "Origin", "Recipe", "StoredWeights"]

JsonObject = dict[str, object]
T = TypeVar("T")


def json_object(data: object) -> JsonObject:
    """Take data for an object, by name.  Raises TypeError for anything else."""
    return json_value(data, dict)


def json_list(data: object) -> list[object]:
    """Take data for a list.  Raises TypeError for anything else."""
    return json_value(data, list)


def json_value(data: object, kind: type[T]) -> T:
    """Take data for a value of one kind.  Raises TypeError for anything else."""
    if not isinstance(data, kind):
        raise TypeError(f"{type(data).__name__} where a {kind.__name__} is needed")
    return data


def json_number(data: object) -> float:
    """Take data for a number.  Raises TypeError for anything else."""
    return float(json_value(data, int) if isinstance(data, int) else json_value(data, float))


def json_name(data: object) -> str:
    """Take data for a name that may stand in code.  Raises TypeError or ValueError for anything else."""
    name = json_value(data, str)
    if not name.isidentifier() or keyword.iskeyword(name):
        raise ValueError(f"{name!r} where a name is needed")
    return name


def json_count(data: object) -> int:
    """Take data for a whole number of at least 0.  Raises TypeError or ValueError for anything else."""
    number = json_value(data, int)
    if isinstance(data, bool) or number < 0:
        raise ValueError(f"{data} where a whole number of at least 0 is needed")
    return number


def dtype_named(data: object) -> torch.dtype:
    """Take data for the name of a type of numbers.  Raises TypeError for anything else."""
    return json_value(getattr(torch, json_value(data, str), None), torch.dtype)


class Dtypes(TypedDict):
    """The usual floating-point type, and the weights that have another."""

    usual: str
    others: dict[str, str]


_Recipe = TypedDict("_Recipe", {"from": str, "options": Mapping[str, object]})


class Recipe(_Recipe, total=False):
    """How an original is built: `from` names it in a library; `on`: the device that its constructor needs."""

    config: JsonObject
    on: str


_Origin = TypedDict("_Origin", {"class": str, "layout": str, "dtypes": Dtypes})


class Origin(_Origin, total=False):
    """What is remembered of an original, see `fxprune.result.origin`.

    build: the recipe that it was loaded by.
    """

    classes: int | None
    architecture: str | None
    config: JsonObject | None
    attributes: list[str]
    build: Recipe | None


class Options(TypedDict):
    """How an original was analysed, as of `analyze`."""

    outputs: str | Sequence[str]
    split_qkv: bool
    capture: Literal["symbolic", "export"]


class Call(TypedDict):
    """An example call, as of `fxprune.result.saved.examples`."""

    args: list[object]
    kwargs: JsonObject


class _Made(TypedDict):
    origin: Origin
    options: Options
    example: Call
    plan: JsonObject


class Made(_Made, total=False):
    """How a result is made: a plan, and what it is applied to.

    own: of an instance of the original's class, how it came about.
    before: of a result that was pruned again, how that was made.
    remade: what the original held under names that its own code assigns.
    """

    own: JsonObject
    remade: JsonObject
    before: Made


class Modes(TypedDict):
    """Train or eval, and the modules that are in the other mode."""

    training: bool
    others: list[str]


class StoredWeights(TypedDict):
    """The file of weights: its size and its digest."""

    bytes: int
    sha256: str


class _Saved(Made):
    made_by: dict[str, str]
    build: Recipe | None
    graph: str
    modes: Modes
    frozen: list[str]


class StoredImages(TypedDict):
    """The digests of the file about images, and of that in whose place it comes; None where there is none."""

    sha256: str | None
    instead_of: str | None


class FolderRecord(_Saved, total=False):
    """`fxprune.json`.

    replaced: layers that took the place of the plan's, by path.
    format, weights, images: written with the folder.
    """

    replaced: JsonObject
    format: str
    weights: StoredWeights
    images: StoredImages
