"""Whether a folder's record is of the form that `save` writes: its digest only says that it is whole."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Literal, get_args

from fxprune.errors import FileError
from fxprune.result.json_types import (
    JsonObject,
    Options,
    dtype_named,
    json_count,
    json_list,
    json_object,
    json_value,
)

__all__ = ["check_files", "check_record"]

_DIGEST = re.compile(r"[0-9a-f]{64}")
_NONE = "the record is none that fxprune.save writes: {}"
_Device = Literal["meta", "cpu"]


def check_record(record: Mapping[str, object]) -> None:
    """Check the fields that are used as they stand; what reads plans, layers and own code checks those.

    Raises:
        FileError: one is missing, or of another kind.
    """
    try:
        _check_made({**record})
        _check_build(record["build"])
        _words(json_object(record["made_by"]).values())
        _words(json_list(record["frozen"]))
        _digest(record["graph"])
        modes = json_object(record["modes"])
        json_value(modes["training"], bool)
        _words(json_list(modes["others"]))
        json_object(record.get("replaced", {}))
    except (KeyError, TypeError, ValueError) as error:
        raise FileError(_NONE.format(_said(error))) from error


def check_files(record: JsonObject) -> None:
    """Check what a record says of the files beside it.

    Raises:
        FileError: it is missing, or of another kind.
    """
    try:
        weights, images = json_object(record["weights"]), json_object(record.get("images", {}))
        json_count(weights["bytes"])
        _digest(weights["sha256"])
        for digest in (images["sha256"], images["instead_of"]) if images else ():
            if digest is not None:
                _digest(digest)
    except (KeyError, TypeError, ValueError) as error:
        raise FileError(_NONE.format(_said(error))) from error


def _check_made(made: JsonObject) -> None:
    origin, options, example = (json_object(made[key]) for key in ("origin", "options", "example"))
    _words([origin["class"], origin["layout"]])
    dtypes = json_object(origin["dtypes"])
    for name in (dtypes["usual"], *json_object(dtypes["others"]).values()):
        dtype_named(name)
    if origin.get("build") is not None:
        _check_build(origin["build"])
    if not options.keys() <= Options.__annotations__.keys():
        raise ValueError(f"unknown options: {[*options.keys() - Options.__annotations__.keys()]}")
    json_list(example["args"])
    json_object(example["kwargs"])
    json_object(made["plan"])
    for entry in json_object(made.get("remade", {})).values():
        if "shape" in json_object(entry):
            _check_tensor(json_object(entry))
    if "own" in made:
        json_object(made["own"])
    if "before" in made:
        _check_made(json_object(made["before"]))


def _check_tensor(entry: JsonObject) -> None:
    dtype_named(entry["dtype"])
    count = 1
    for size in json_list(entry["shape"]):
        count *= json_count(size)
    if "values" in entry:
        values = json_list(entry["values"])
        if len(values) != count or not all(isinstance(v, (bool, int, float)) for v in values):
            raise ValueError("the values of a tensor are not numbers of its shape")


def _check_build(build: object) -> None:
    if build is None:
        return
    recipe = json_object(build)
    json_value(recipe["from"], str)
    json_object(recipe.get("options", {}))
    if recipe.get("config") is not None:
        json_object(recipe["config"])
    if "on" in recipe and recipe["on"] not in get_args(_Device):
        raise ValueError(f"{recipe['on']!r} is no device that an original is built on")


def _words(values: Iterable[object]) -> None:
    for value in values:
        json_value(value, str)


def _digest(value: object) -> None:
    if not _DIGEST.fullmatch(json_value(value, str)):
        raise ValueError(f"{value!r} is no digest")


def _said(error: Exception) -> str:
    return f"{error} is missing" if isinstance(error, KeyError) else str(error)
