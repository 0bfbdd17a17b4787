"""The layer that reads a model's input: what kind of input it takes, how wide, and in what strides."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

__all__ = ["Entry", "Kind", "entries_of", "entry_of"]

Kind = Literal["ids", "vectors", "signal", "image", "video"]

CONVOLUTIONS: tuple[tuple[type[nn.Module], Kind], ...] = (
    (nn.Conv1d, "signal"),
    (nn.Conv2d, "image"),
    (nn.Conv3d, "video"),
)


@dataclass(frozen=True)
class Entry:
    """kind: of input.  width: vocabulary, features or channels.  stride: of a convolution, per dimension."""

    kind: Kind
    width: int
    stride: tuple[int, ...] = ()

    def patches(self) -> list[tuple[int, int]]:
        """(channels, side) of square patches that, flattened, are as wide: 48 is 3 x 4 x 4."""
        found = []
        for channels in (3, 1, 4, 2):
            side = math.isqrt(self.width // channels)
            if self.kind == "vectors" and side > 1 and side * side * channels == self.width:
                found.append((channels, side))
        return found


def entry_of(layer: nn.Module) -> Entry | None:
    """What a layer takes, where it is one that can be the first."""
    if isinstance(layer, (nn.Embedding, nn.EmbeddingBag)):
        return Entry("ids", layer.num_embeddings)
    for convolution, kind in CONVOLUTIONS:
        if isinstance(layer, convolution):
            return Entry(kind, layer.in_channels, tuple(layer.stride))  # type: ignore[arg-type]
    if isinstance(layer, nn.Linear):
        return Entry("vectors", layer.in_features)
    if isinstance(layer, (nn.LayerNorm, nn.RMSNorm)) and len(layer.normalized_shape) == 1:
        return Entry("vectors", layer.normalized_shape[0])
    if isinstance(layer, nn.BatchNorm1d):
        return Entry("vectors", layer.num_features)
    return None


def entries_of(model: nn.Module) -> list[Entry]:
    """The layers that may be the first, in the order in which the model holds them."""
    return list(dict.fromkeys(e for m in model.modules() if (e := entry_of(m)) is not None))


def tables_of(model: nn.Module) -> list[Tensor]:
    """Parameters and buffers that a module of the model's own holds, and the tables of embeddings.

    One of them may be a table of positions, with a row for each token.
    """
    found = []
    for module in model.modules():
        if not type(module).__module__.startswith("torch.nn") or isinstance(module, nn.Embedding):
            found += [t for t in (*module._parameters.values(), *module._buffers.values()) if t is not None]
    return found
