"""Layers that torch.export opens are layers again, of their own class and options."""

from __future__ import annotations

import pytest
import torch
from exactness import assert_exact
from helpers import randomise
from torch import nn

import fxprune

LAYERS = [
    (nn.ConvTranspose1d(16, 16, 3, 2, 1, output_padding=1), 1),
    (nn.ConvTranspose2d(16, 16, 2, 2, groups=2), 2),
    (nn.ConvTranspose3d(16, 16, 2, bias=False), 3),
    (nn.PReLU(16), 2),
    (nn.RMSNorm(16), 0),
    (nn.RMSNorm(16, eps=0.1), 0),
]


@pytest.mark.parametrize(("layer", "n"), LAYERS, ids=str)
def test_a_layer_is_a_layer_after_export(layer: nn.Module, n: int) -> None:
    ends = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)[n]
    first, last = (nn.Linear(3, 16), nn.Linear(16, 5)) if n == 0 else (ends(3, 16, 1), ends(16, 5, 1))  # type: ignore[arg-type]
    model = randomise(nn.Sequential(first, layer, last).eval())
    pruned = fxprune.prune(model, 0.5, example_inputs=torch.zeros(2, 3, *[4] * n), capture="export")
    got = pruned.get_submodule("1")
    assert type(got) is type(layer)
    assert getattr(got, "eps", 0) == getattr(layer, "eps", 0)
    assert_exact(model, pruned)
