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


class ComputedShape(nn.Module):
    """Functional norms on layers' weights, over a shape that the code computes."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.norm, self.rms = nn.Linear(6, 8), nn.LayerNorm(8), nn.RMSNorm(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.fc(x)
        y = nn.functional.layer_norm(y, (y.shape[-1],), self.norm.weight, self.norm.bias)
        return nn.functional.rms_norm(y, (y.shape[-1],), self.rms.weight)


@pytest.mark.parametrize("capture", ["symbolic", "export"])
def test_a_norm_over_a_computed_shape_is_a_layer(capture: str) -> None:
    model = randomise(ComputedShape()).eval()
    module = fxprune.trace(model, torch.randn(2, 6), capture=capture, check="values")
    kinds = {type(module.get_submodule(str(n.target))) for n in module.graph.nodes if n.op == "call_module"}
    assert kinds >= {nn.Linear, nn.LayerNorm}
    x = torch.randn(5, 6)
    torch.testing.assert_close(module(x), model(x))
    pruned = fxprune.prune(nn.Sequential(model, nn.Linear(8, 2)), 0.5, example_inputs=x, capture=capture)
    assert pruned.get_parameter("0.norm.weight").shape == (4,)
