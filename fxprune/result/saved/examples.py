"""An example call as JSON: shapes and types of tensors, whole numbers and plain values as they are."""

from __future__ import annotations

import torch
from torch import Tensor

from fxprune.errors import FileError
from fxprune.graph.example import Example
from fxprune.graph.nests import PLAIN
from fxprune.result.json_types import Call, dtype_named, json_count, json_list, json_name, json_object

__all__ = ["example_from", "example_record"]

WHOLE = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool)
MOST = 4096  # whole numbers of a tensor that are written


def example_record(example: Example) -> Call:
    """Record an example.  Raises FileError for an argument that is neither a tensor nor plain data."""
    return {
        "args": [_written(a) for a in example.args],
        "kwargs": {k: _written(v) for k, v in example.kwargs.items()},
    }


def example_from(record: Call, device: str) -> Example:
    """Return the same call: with its whole numbers, which mean something, and zeros for others.

    Raises:
        FileError: it is none that `example_record` wrote.
    """
    try:
        args = tuple(_read(a, device) for a in json_list(record["args"]))
        kwargs = {json_name(k): _read(v, device) for k, v in json_object(record["kwargs"]).items()}
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise FileError(f"the example call can't be read: {type(error).__name__}: {error}") from error
    return Example(args, kwargs)


def _written(value: object) -> object:
    if isinstance(value, Tensor):
        about = {"shape": list(value.shape), "dtype": str(value.dtype).removeprefix("torch.")}
        whole = value.dtype in WHOLE and value.numel() <= MOST and not value.is_meta
        return about | ({"values": value.flatten().tolist()} if whole else {})
    if isinstance(value, (list, tuple)):
        return {type(value).__name__: [_written(v) for v in value]}
    if isinstance(value, dict):
        return {"dict": {str(k): _written(v) for k, v in value.items()}}
    if isinstance(value, PLAIN):
        return value
    raise FileError(f"the example call has an argument of type {type(value).__name__}, which can't be saved")


def _read(value: object, device: str) -> object:
    if not isinstance(value, dict):
        return value
    if "shape" in value:
        shape, dtype = [json_count(n) for n in json_list(value["shape"])], dtype_named(value["dtype"])
        if "values" in value:
            return torch.tensor(value["values"], dtype=dtype, device=device).reshape(shape)
        return torch.zeros(shape, dtype=dtype, device=device)
    ((kind, items),) = value.items()
    if kind == "dict":
        return {k: _read(v, device) for k, v in json_object(items).items()}
    if kind not in ("list", "tuple"):
        raise ValueError(f"{kind!r} is no kind of argument")
    found = [_read(v, device) for v in json_list(items)]
    return tuple(found) if kind == "tuple" else found
