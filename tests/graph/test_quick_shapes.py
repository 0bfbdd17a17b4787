"""Shapes known without asking torch are those that torch gives; what torch refuses is left to it."""

from __future__ import annotations

import operator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxprune
from fxprune.errors import RewriteError
from fxprune.graph.quick_shapes import quick_shape
from fxprune.graph.values import refuse_broken

W, B, C = torch.ones(4, 6), torch.ones(4), torch.ones(6)

KNOWN: dict[str, tuple[Any, tuple[int, ...], dict[str, Any]]] = {
    "Linear": (nn.Linear(6, 4), (2, 3, 6), {}),
    "Linear without bias": (nn.Linear(6, 4, bias=False), (6,), {}),
    "LayerNorm": (nn.LayerNorm((3, 6)), (2, 3, 6), {}),
    "BatchNorm1d": (nn.BatchNorm1d(6), (2, 6, 5), {}),
    "BatchNorm2d": (nn.BatchNorm2d(6, affine=False), (2, 6, 3, 5), {}),
    "Conv2d": (nn.Conv2d(6, 4, 3, stride=2, padding=1), (2, 6, 7, 8), {}),
    "Conv2d in groups": (nn.Conv2d(6, 8, (3, 1), dilation=2, groups=2), (2, 6, 7, 8), {}),
    "GELU": (nn.GELU(), (2, 3), {}),
    "gelu": (F.gelu, (2, 3), {"approximate": "tanh"}),
    "linear": (F.linear, (2, 3, 6), {"weight": W, "bias": B}),
    "batch_norm": (F.batch_norm, (2, 6, 3), {"running_mean": C, "running_var": C, "weight": C}),
    "layer_norm": (F.layer_norm, (2, 6), {"normalized_shape": [6], "weight": C}),
    "softmax": (F.softmax, (2, 6), {"dim": 1}),
}


@pytest.mark.parametrize("name", KNOWN)
def test_as_torch_does(name: str) -> None:
    layer, shape, kwargs = KNOWN[name]
    x = torch.zeros(shape)
    assert quick_shape(layer, (x,), kwargs) == layer(x, **kwargs).shape


@pytest.mark.parametrize("layer", [nn.Linear(6, 4), nn.LayerNorm(6)])
def test_of_any_layout(layer: nn.Module) -> None:
    x = torch.zeros(6, 3, 2).permute(2, 1, 0)
    out = layer(x)
    assert quick_shape(layer, (x,), {}) == out.shape
    assert out.is_contiguous()


@pytest.mark.parametrize("multiply", [torch.matmul, operator.matmul])
def test_products(multiply: Any) -> None:
    x, y = torch.zeros(2, 3, 4, 5), torch.zeros(2, 3, 6, 5).transpose(2, 3)
    assert quick_shape(multiply, (x, y), {}) == multiply(x, y).shape
    for other in (y[0], y[..., :4, :], y.double(), y[0, 0, :, 0]):
        assert quick_shape(multiply, (x, other), {}) is None


@pytest.mark.parametrize("op", [operator.add, operator.sub, operator.mul, operator.truediv, torch.add])
@pytest.mark.parametrize("other", [(2, 3, 4), (3, 4), (4,), (1, 3, 1), (1, 1, 1), ()])
def test_elements(op: Any, other: tuple[int, ...]) -> None:
    x, y = torch.ones(2, 3, 4), torch.ones(other)
    out = op(x, y)
    assert quick_shape(op, (x, y), {}) == out.shape
    assert out.is_contiguous()
    assert quick_shape(op, (x, 2.0), {}) == quick_shape(op, (x, 2), {}) == out.shape


@pytest.mark.parametrize(
    "y",
    [
        *(torch.ones(3), torch.ones(5, 2, 3, 4), torch.ones(4, dtype=torch.float64)),
        *(torch.ones(4, dtype=torch.int64), torch.ones(4, 3).T, 1j, True),
    ],
)
def test_elements_that_are_left_to_torch(y: Any) -> None:
    assert quick_shape(operator.add, (torch.ones(2, 3, 4), y), {}) is None
    assert quick_shape(operator.add, (torch.ones(2, 4, 3).transpose(1, 2), torch.ones(4)), {}) is None
    assert quick_shape(torch.add, (torch.ones(2), torch.ones(2)), {"alpha": 2}) is None


@pytest.mark.parametrize("sizes", [(6, 4), (-1, 2), ((2, -1),), ([24],), (2, 3, 1, 4, 1), (-1,)])
@pytest.mark.parametrize("method", ["view", "reshape"])
def test_other_sizes(method: str, sizes: tuple[Any, ...]) -> None:
    x = torch.ones(2, 3, 4)
    out = getattr(x, method)(*sizes)
    assert quick_shape(method, (x, *sizes), {}) == out.shape
    assert out.is_contiguous()


@pytest.mark.parametrize("sizes", [(5, 5), (-1, -1), (-1, 5), (torch.int32,), (2, -3, 4), (0, -1), ()])
def test_other_sizes_that_are_left_to_torch(sizes: tuple[Any, ...]) -> None:
    assert quick_shape("view", (torch.ones(2, 3, 4), *sizes), {}) is None
    assert quick_shape("view", (torch.ones(3, 4).T, 12), {}) is None
    assert quick_shape("reshape", (torch.ones(2, 3, 4),), {"shape": (6, 4)}) is None


@pytest.mark.parametrize("dim", [2, -3, None])
def test_a_softmax_that_is_left_to_torch(dim: int | None) -> None:
    assert quick_shape("softmax", (torch.ones(3, 4), dim), {}) is None
    assert quick_shape("softmax", (torch.ones(3, 4), 1), {"dtype": torch.float64}) is None
    assert quick_shape(torch.softmax, (torch.ones(4, 3).T,), {"dim": 1}) is None
    assert quick_shape(torch.softmax, (torch.ones(3, 4), 1, torch.float64), {}) is None
    assert quick_shape(F.softmax, (torch.ones(3, 4), 1, 3, torch.float64), {}) is None
    assert quick_shape(torch.matmul, (torch.ones(3, 4),), {"other": torch.ones(4, 3)}) is None


LEFT_TO_TORCH: dict[str, tuple[Any, Tensor, dict[str, Any]]] = {
    "another width": (nn.Linear(6, 4), torch.zeros(2, 5), {}),
    "another dtype": (nn.Linear(6, 4), torch.zeros(2, 6, dtype=torch.float64), {}),
    "another bias": (F.linear, torch.zeros(2, 6), {"weight": W, "bias": C}),
    "other channels": (nn.BatchNorm2d(6), torch.zeros(2, 4, 3, 3), {}),
    "other statistics": (F.batch_norm, torch.zeros(2, 6), {"running_mean": B, "running_var": B}),
    "another norm": (nn.LayerNorm(6), torch.zeros(2, 4), {}),
    "other norm weights": (F.layer_norm, torch.zeros(2, 6), {"normalized_shape": [6], "weight": B}),
    "another layout": (nn.BatchNorm2d(6), torch.zeros(2, 3, 3, 6).permute(0, 3, 1, 2), {}),
    "another layer": (nn.Conv1d(6, 4, 1), torch.zeros(2, 6, 3), {}),
    "other input channels": (nn.Conv2d(6, 4, 1), torch.zeros(2, 5, 3, 3), {}),
    "padding by name": (nn.Conv2d(6, 4, 3, padding="same"), torch.zeros(2, 6, 3, 3), {}),
    "padding by reflection": (
        nn.Conv2d(6, 4, 3, padding=1, padding_mode="reflect"),
        torch.zeros(2, 6, 3, 3),
        {},
    ),
    "no batch": (nn.Conv2d(6, 4, 1), torch.zeros(6, 3, 3), {}),
    "too small an image": (nn.Conv2d(6, 4, 5), torch.zeros(2, 6, 3, 3), {}),
    "whole numbers": (nn.ReLU(), torch.zeros(2, 6, dtype=torch.int64), {}),
    "a subclass": (type("Own", (nn.Linear,), {})(6, 4), torch.zeros(2, 6), {}),
}


@pytest.mark.parametrize("name", LEFT_TO_TORCH)
def test_anything_else_is_left_to_torch(name: str) -> None:
    layer, x, kwargs = LEFT_TO_TORCH[name]
    assert quick_shape(layer, (x,), kwargs) is None


def test_a_width_that_does_not_fit_is_found_in_the_rewritten_graph() -> None:
    model = nn.Sequential(nn.Linear(8, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 4))
    x = torch.zeros(3, 8)
    pruned = fxprune.prune(model, 0.5, example_inputs=x)
    example = pruned.record.example.map(torch.zeros_like)
    refuse_broken(pruned, example)
    for target, broken in (("1", nn.BatchNorm1d(7)), ("3", nn.Linear(7, 4))):
        kept = pruned.get_submodule(target)
        pruned.set_submodule(target, broken.eval())
        with pytest.raises(RewriteError, match=r"does not run at"):
            refuse_broken(pruned, example)
        pruned.set_submodule(target, kept)
