"""Example inputs: given, or inferred from what the ecosystem records on a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fxprune.errors import ExampleInputError
from fxprune.graph.example import Example

__all__ = ["example_of"]


def example_of(model: nn.Module, example_inputs: Any = None, example_kwargs: Any = None) -> Example:
    """The example given, or one of the shape that the model records: two blank samples.

    Looked for in turn: an `example_input_array` (Lightning), a `pretrained_cfg` / `default_cfg` with
    `input_size` (timm), a `config` with `image_size` and `num_channels` (Hugging Face), torchvision's
    3 x 224 x 224.
    """
    if example_inputs is not None or example_kwargs is not None:
        return _given(example_inputs, example_kwargs)
    recorded = getattr(model, "example_input_array", None)
    if recorded is not None:
        return _on_device(_recorded_example(recorded), model)
    shape = _recorded_shape(model)
    if shape is None:
        raise ExampleInputError(
            f"the input shape of {type(model).__name__} is recorded nowhere (no pretrained_cfg, no "
            f"config with image_size); pass example_inputs=torch.zeros(2, 3, height, width)"
        )
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))
    return Example((torch.zeros(2, *shape, dtype=like.dtype, device=like.device),))


def _recorded_example(recorded: Any) -> Example:
    """A tensor, a tuple of positional arguments or a dict of keyword arguments."""
    if isinstance(recorded, Mapping):
        return Example((), dict(recorded))
    return _given(recorded, None)


def _on_device(example: Example, model: nn.Module) -> Example:
    """In the dtype and on the device of the model's weights."""
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))
    return example.map(lambda t: t.to(like.device, like.dtype if t.is_floating_point() else t.dtype))


def _given(example_inputs: Any, example_kwargs: Any) -> Example:
    if example_inputs is None:
        args: tuple[Any, ...] = ()
    elif isinstance(example_inputs, Tensor):
        args = (example_inputs,)
    elif isinstance(example_inputs, (tuple, list)):
        args = tuple(example_inputs)
    else:
        raise ExampleInputError(
            "example_inputs is a tensor or a tuple of positional arguments, "
            f"not {type(example_inputs).__name__}"
        )
    return Example(args, dict(example_kwargs or {}))


def _recorded_shape(model: nn.Module) -> tuple[int, ...] | None:
    for name in ("pretrained_cfg", "default_cfg"):
        shape = _field(getattr(model, name, None), "input_size")
        if shape:
            return tuple(shape)
    config = getattr(model, "config", None)
    for candidate in (config, _field(config, "vision_config")):
        size = _field(candidate, "image_size")
        if size:
            return (_field(candidate, "num_channels") or 3, *_height_and_width(size))
    if getattr(model, "main_input_name", None) == "pixel_values":  # any size will do: the library's usual
        return (_field(config, "num_channels") or 3, 224, 224)
    if type(model).__module__.split(".")[0] == "torchvision":
        return (3, 224, 224)
    return None


def _height_and_width(size: Any) -> tuple[int, int]:
    if isinstance(size, int):
        return size, size
    if isinstance(size, Mapping):
        return size["height"], size["width"]
    height, width = size[0], size[-1]
    return height, width


def _field(record: Any, name: str) -> Any:
    return record.get(name) if isinstance(record, Mapping) else getattr(record, name, None)
