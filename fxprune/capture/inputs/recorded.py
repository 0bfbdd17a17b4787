"""What the ecosystem records on a model about its inputs: sizes of images, and whole example calls."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fxprune.graph.example import Example
from fxprune.graph.tensors import like_weights

__all__ = ["recorded_calls", "recorded_size"]


def recorded_size(model: nn.Module) -> tuple[int, int, int] | None:
    """Return (channels, height, width) of one image, as the model's library records it.

    That is the size of the library's weights, not of this model, which may be built for another one.
    """
    for name in ("pretrained_cfg", "default_cfg"):  # timm
        shape = _field(getattr(model, name, None), "input_size")
        if shape and len(shape) == 3:
            channels, height, width = shape
            return channels, height, width
    config = getattr(model, "config", None)  # Hugging Face
    for candidate in (config, _field(config, "vision_config")):
        size = _field(candidate, "image_size")
        if size:
            return (_field(candidate, "num_channels") or 3, *_height_and_width(size))
    if getattr(model, "main_input_name", None) == "pixel_values":  # any size will do: the library's usual
        return _field(config, "num_channels") or 3, 224, 224
    if type(model).__module__.split(".")[0] == "torchvision":
        return 3, 224, 224
    return None


def recorded_calls(model: nn.Module) -> list[Example]:
    """Return whole calls, which Hugging Face's models of text hold ready, and those of videos record."""
    found = []
    like, size = like_weights(model), recorded_size(model)
    for name in ("pretrained_cfg", "default_cfg"):  # a series or a video, by timm's convention
        shape = _field(getattr(model, name, None), "input_size")
        if shape and len(shape) != 3:
            found.append(Example((torch.zeros(2, *shape, dtype=like.dtype, device=like.device),)))
    frames = _field(getattr(model, "config", None), "num_frames")
    if isinstance(frames, int) and size is not None:
        found.append(Example((torch.zeros(2, frames, *size, dtype=like.dtype, device=like.device),)))
    if getattr(model, "main_input_name", None) == "input_ids" and (call := _held_ready(model)):
        if size is not None and "pixel_values" in inspect.signature(model.forward).parameters:
            samples = next(v.shape[0] for v in call.values() if isinstance(v, Tensor))
            call["pixel_values"] = torch.zeros(samples, *size, dtype=like.dtype)
        found.append(Example((), call).map(lambda t: t.to(like.device)))
    return found


def _held_ready(model: nn.Module) -> dict[str, Any]:
    try:
        call = getattr(model, "dummy_inputs", None)
    except Exception:  # a property, which a configuration that lacks something breaks
        return {}
    plain = {str(k): v for k, v in call.items()} if isinstance(call, Mapping) else {}
    return plain if any(isinstance(v, Tensor) and v.ndim for v in plain.values()) else {}


def _height_and_width(size: Any) -> tuple[int, int]:
    if isinstance(size, int):
        return size, size
    if isinstance(size, Mapping):  # {"height": .., "width": ..}, or {"shortest_edge": ..}
        sides = [*size.values()]
        return size.get("height", sides[0]), size.get("width", sides[-1])
    return size[0], size[-1]


def _field(record: Any, name: str) -> Any:
    return record.get(name) if isinstance(record, Mapping) else getattr(record, name, None)
