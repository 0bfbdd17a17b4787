"""Pack kept positions as bits: one bit per element, 1 for kept, the first in the highest bit, as base64."""

from __future__ import annotations

import base64

import numpy as np
from torch import Tensor

__all__ = ["flags_of", "mask_bits", "position_bits", "positions_of"]


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
