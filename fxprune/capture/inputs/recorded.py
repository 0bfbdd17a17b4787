"""What the ecosystem records on a model about its inputs: sizes of images, and whole example calls."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["is_text", "recorded_call", "recorded_size"]


def recorded_size(model: nn.Module) -> tuple[int, int, int] | None:
    """(channels, height, width) of one image, as the model's library records it.

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


def is_text(model: nn.Module) -> bool:
    """Does the model's library say that token ids are its first input?"""
    return getattr(model, "main_input_name", None) == "input_ids"


def recorded_call(model: nn.Module) -> dict[str, Any] | None:
    """Keyword arguments of a call, as Hugging Face's models of text hold them ready."""
    try:
        call = getattr(model, "dummy_inputs", None)
    except Exception:  # a property that computes it from a configuration that lacks something
        return None
    if not isinstance(call, Mapping) or not call:
        return None
    return {str(k): v for k, v in call.items() if isinstance(v, (Tensor, bool, int, float))} or None


def _height_and_width(size: Any) -> tuple[int, int]:
    if isinstance(size, int):
        return size, size
    if isinstance(size, Mapping):
        return size["height"], size["width"]
    return size[0], size[-1]


def _field(record: Any, name: str) -> Any:
    return record.get(name) if isinstance(record, Mapping) else getattr(record, name, None)


def like_weights(model: nn.Module) -> Tensor:
    """A tensor of the dtype and on the device of the model's weights."""
    return next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))
