"""The layer that reads a model's input: what kind of input it takes, how wide, and in what strides."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from torch import nn

__all__ = ["Entry", "Kind", "entries_of", "entry_of"]

Kind = Literal["ids", "vectors", "signal", "image", "video"]

CONVOLUTIONS: tuple[tuple[type[nn.Module], Kind], ...] = (
    (nn.Conv1d, "signal"),
    (nn.Conv2d, "image"),
    (nn.Conv3d, "video"),
)


@dataclass(frozen=True)
class Entry:
    """What a layer takes that can be a model's first.

    kind: of input.  width: vocabulary, features or channels.  out: features of what the layer makes of it, 0
    for a norm.  stride: of a convolution, per dimension.
    """

    kind: Kind
    width: int
    out: int
    stride: tuple[int, ...] = ()

    def patches(self) -> list[tuple[int, int]]:
        """Return (channels, side) of square patches that, flattened, are as wide: 48 is 3 x 4 x 4."""
        found = []
        for channels in (3, 1, 4, 2):
            side = math.isqrt(self.width // channels)
            if self.kind == "vectors" and side > 1 and side * side * channels == self.width:
                found.append((channels, side))
        return found


def entry_of(layer: nn.Module) -> Entry | None:
    """Return what a layer takes, where it is one that can be the first."""
    if isinstance(layer, (nn.Embedding, nn.EmbeddingBag)):
        return Entry("ids", layer.num_embeddings, layer.embedding_dim)
    for convolution, kind in CONVOLUTIONS:
        if isinstance(layer, convolution):
            stride: tuple[int, ...] = tuple(layer.stride)  # type: ignore[arg-type]
            return Entry(kind, layer.in_channels, layer.out_channels, stride)  # type: ignore[arg-type]
    if isinstance(layer, nn.Linear):
        return Entry("vectors", layer.in_features, layer.out_features)
    if isinstance(layer, (nn.LayerNorm, nn.RMSNorm)) and len(layer.normalized_shape) == 1:
        return Entry("vectors", layer.normalized_shape[0], 0)
    if isinstance(layer, nn.BatchNorm1d):
        return Entry("vectors", layer.num_features, 0)
    return None


def entries_of(model: nn.Module) -> list[Entry]:
    """Return the layers that may be the first, in the order in which the model holds them."""
    return list(dict.fromkeys(e for m in model.modules() if (e := entry_of(m)) is not None))
