"""Pack numbers as base64: kept positions as bits (1 for kept, the first in the highest bit), and matrices."""

from __future__ import annotations

import base64

import numpy as np
import torch
from torch import Tensor

from fxprune.result.json_types import json_list, json_object, json_value

__all__ = ["flags_of", "mask_bits", "position_bits", "positions_of", "read_matrix", "written_matrix"]


def position_bits(positions: Tensor) -> str:
    mask = np.zeros(int(positions.max()) + 1, dtype=bool)
    mask[positions.numpy()] = True
    return mask_bits(mask)


def positions_of(bits: str) -> list[int]:
    return np.flatnonzero(flags_of(bits)).tolist()


def mask_bits(mask: np.ndarray) -> str:
    return base64.b64encode(np.packbits(mask).tobytes()).decode()


def flags_of(bits: str) -> np.ndarray:
    return np.unpackbits(np.frombuffer(base64.b64decode(bits, validate=True), dtype=np.uint8))


def written_matrix(matrix: Tensor) -> dict[str, object]:
    """Write a tensor as JSON data: its shape, and its numbers in base64."""
    numbers = matrix.detach().cpu().double().contiguous().numpy().astype("<f8")
    return {"shape": list(matrix.shape), "numbers": base64.b64encode(numbers.tobytes()).decode()}


def read_matrix(written: object) -> Tensor:
    """Read what `written_matrix` wrote.  Raises ValueError for another count of numbers, or none at all."""
    record = json_object(written)
    encoded = json_value(record["numbers"], str)
    numbers = np.frombuffer(base64.b64decode(encoded, validate=True), dtype="<f8")
    if not np.isfinite(numbers).all():
        raise ValueError("a matrix has numbers that are none")
    shape = [json_value(size, int) for size in json_list(record["shape"])]
    return torch.from_numpy(numbers.astype(np.float64).reshape(shape))
