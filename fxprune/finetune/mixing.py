"""Mixup and cutmix of timm, on any batch that holds images and their classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fxprune.choose.importance.data import parts_of
from fxprune.errors import OptionError, shown

__all__ = ["mix"]


def mix(mixup: Any, batch: Any) -> Any:
    """Mix the images of a batch with one another, and their labels, as timm's `mixup` draws it.

    Args:
        batch: `(images, labels)`, or a mapping with both: floats [batch, channels, height, width], and
            numbers of classes [batch].

    Returns:
        A batch of the same kind; labels are shares [batch, classes].

    Raises:
        OptionError: it is no such batch, or has an odd number of images, which timm mixes in pairs.
    """
    args, kwargs, labels = parts_of(batch)
    found = [v for v in (*args, *kwargs.values()) if isinstance(v, Tensor) and v.ndim == 4]
    classes = isinstance(labels, Tensor) and labels.ndim == 1 and not labels.is_floating_point()
    if len(found) != 1 or not found[0].is_floating_point() or not classes:
        raise OptionError(
            f"mixup and cutmix mix images [batch, channels, height, width] and numbers of classes [batch], "
            f"and a batch is {shown(batch)}"
        )
    (images,) = found
    if len(images) % 2:
        raise OptionError(f"mixup pairs images, and a batch has {len(images)}: drop the last batch")
    mixed, shares = mixup(images.clone(), labels)  # timm writes into the images
    if not isinstance(batch, Mapping):
        return mixed, shares
    return {k: mixed if v is images else shares if v is labels else v for k, v in batch.items()}
