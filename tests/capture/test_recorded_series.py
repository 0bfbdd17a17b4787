"""Series and videos whose shape is recorded by timm's convention: one or three sizes beside the channels."""

from __future__ import annotations

import pytest
from helpers import randomise
from torch import Tensor, nn

import fxprune


class Recorded(nn.Module):
    """Takes samples of one shape only, which nothing but its record tells."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.default_cfg = {"input_size": shape}
        conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[len(shape) - 2]
        self.stem, self.head = conv(shape[0], 16, 1), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1:] != self.default_cfg["input_size"]:
            raise ValueError("another shape")
        return self.head(self.stem(x).relu().flatten(2).mean(2))


@pytest.mark.parametrize("shape", [(3, 64), (3, 4, 8, 8), (1, 100)])
def test_the_recorded_shape_is_taken(shape: tuple[int, ...]) -> None:
    model = randomise(Recorded(*shape).eval())
    pruned = fxprune.prune(model, 0.5)
    assert fxprune.verify(model, pruned) < 1e-8
    assert pruned.get_submodule("head").in_features == 8
