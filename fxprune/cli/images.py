"""A folder of images as batches, with the transforms that a model was made for.  Labels are not needed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from fxprune.capture.example_of import example_of
from fxprune.errors import DataError

__all__ = ["batches_from"]


def batches_from(
    folder: str, model: nn.Module, options: dict[str, Any], most: int, batch: int
) -> list[Tensor]:
    """At most `most` images, evenly spread over the folder: [batch, channels, height, width] each.

    Mean, size and crop are those that timm records for the model, and timm's usual ones for others.

    Raises:
        DataError: timm is missing, or there are no images.
    """
    try:
        from timm.data import create_dataset, create_transform, resolve_model_data_config
    except ImportError as error:
        raise DataError("--data needs timm for its transforms: pip install timm") from error
    config = resolve_model_data_config(model)
    first = example_of(model, options.get("example_inputs")).args[0]
    config["input_size"] = tuple(first.shape[1:])
    try:
        dataset = create_dataset("", root=folder, transform=create_transform(**config, is_training=False))
    except (RuntimeError, FileNotFoundError) as error:
        raise DataError(f"--data {folder}: {error}") from error
    return list(_batches(dataset, most, batch))


def _batches(dataset: Any, most: int, batch: int) -> Iterator[Tensor]:
    count = min(most, len(dataset))
    chosen = [i * len(dataset) // count for i in range(count)]
    for start in range(0, count, batch):
        yield torch.stack([dataset[i][0] for i in chosen[start : start + batch]])
