"""Layers that torch.export decomposes are layers again, of their own class and options."""

from __future__ import annotations

import copy

import pytest
import torch
from exactness import assert_exact, assert_slices, certified_at
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
    (nn.BatchNorm1d(16), 0),
    (nn.BatchNorm1d(16, momentum=None), 1),
    (nn.SyncBatchNorm(16, eps=0.1), 2),
    (nn.SyncBatchNorm(16, affine=False), 3),
]
for _n in (1, 2, 3):
    _batch, _instance = (getattr(nn, f"{name}Norm{_n}d") for name in ("Batch", "Instance"))
    LAYERS += [
        (_batch(16, eps=0.1, momentum=0.3), _n),
        (_batch(16, affine=False), _n),
        (_batch(16, track_running_stats=False), _n),
        (_batch(16, affine=False, track_running_stats=False), _n),
        (_instance(16, eps=0.1), _n),
        (_instance(16, affine=True), _n),
        (_instance(16, track_running_stats=True), _n),
        (_instance(16, affine=True, track_running_stats=True, momentum=0.3), _n),
    ]


CASES = [(layer, n, False) for layer, n in LAYERS] + [(layer, n, True) for layer, n in LAYERS if n == 2]


class Around(nn.Module):
    """A layer between two others; on request, a write into a part of what the first returns."""

    def __init__(self, layer: nn.Module, n: int, writes: bool) -> None:
        super().__init__()
        ends = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)[n]
        self.options = () if n == 0 else (1,)
        self.first, self.layer, self.last = ends(3, 16, *self.options), layer, ends(16, 5, *self.options)  # type: ignore[arg-type]
        self.writes = writes

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x)
        if self.writes:
            y = y.clone()
            y[:, :8] = 0.5 * y[:, :8]
        return self.last(self.layer(y))


@pytest.mark.parametrize(("layer", "n", "writes"), CASES, ids=str)
def test_a_layer_is_a_layer_after_export(layer: nn.Module, n: int, writes: bool) -> None:
    model = randomise(Around(copy.deepcopy(layer), n, writes).eval())
    x = torch.zeros(2, 3, *[4] * n)
    (pruned,) = certified_at((0.5,), model, x, "export")
    got = pruned.get_submodule("layer")
    assert type(got) is type(layer)
    for option in ("eps", "momentum", "affine", "track_running_stats"):
        assert getattr(got, option, 0) == getattr(layer, option, 0)
    assert pruned.get_parameter("first.weight").shape[0] == 8
    assert_slices(model, pruned)


@pytest.mark.parametrize(("layer", "n", "writes"), CASES, ids=str)
def test_a_whole_result_trains_as_the_model_does(layer: nn.Module, n: int, writes: bool) -> None:
    if isinstance(layer, nn.SyncBatchNorm):
        pytest.skip("it trains on a GPU only")
    model = randomise(Around(copy.deepcopy(layer), n, writes)).double()
    x = torch.randn(3, 3, *[4] * n, dtype=torch.float64)
    whole = fxprune.prune(model, 0.0, example_inputs=x[:2], capture="export")
    for m in (model, whole):
        for _ in range(2):
            m.train()(x).square().sum().backward()
    for m in (whole.train(), whole.eval()):
        torch.testing.assert_close(m(x), model.train(m.training)(x))
    assert {n: p.grad is None for n, p in whole.named_parameters()} == dict.fromkeys(
        dict(model.named_parameters()), False
    )
    for name, p in model.named_parameters():
        torch.testing.assert_close(whole.get_parameter(name).grad, p.grad)
    for name, b in model.named_buffers():
        torch.testing.assert_close(whole.get_buffer(name), b)


class Activated(nn.BatchNorm2d):
    """A batch norm with a forward of its own, as libraries write it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        own = self.training or not self.track_running_stats
        tracked = (self.running_mean, self.running_var) if self.track_running_stats else (None, None)
        y = nn.functional.batch_norm(x, *tracked, self.weight, self.bias, own, self.momentum, self.eps)
        return y.relu()


@pytest.mark.parametrize("writes", [False, True], ids=["plain", "writes"])
@pytest.mark.parametrize("tracked", [True, False], ids=["tracked", "untracked"])
def test_a_norm_with_a_forward_of_its_own_is_a_layer(capture: str, tracked: bool, writes: bool) -> None:
    layer = Activated(16, eps=0.1, track_running_stats=tracked)
    model = randomise(Around(layer, 2, writes).eval())
    pruned = fxprune.prune(model, 0.5, example_inputs=torch.zeros(2, 3, 4, 4), capture=capture)
    got = pruned.get_submodule("layer")
    assert type(got) is nn.BatchNorm2d
    assert (got.eps, got.track_running_stats) == (0.1, tracked)
    assert_exact(model, pruned)
    pruned.train()(torch.randn(3, 3, 4, 4)).sum().backward()


class ComputedShape(nn.Module):
    """Functional norms on layers' weights, over a shape that the code computes."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.norm, self.rms = nn.Linear(6, 8), nn.LayerNorm(8), nn.RMSNorm(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.fc(x)
        y = nn.functional.layer_norm(y, (y.shape[-1],), self.norm.weight, self.norm.bias)
        return nn.functional.rms_norm(y, (y.shape[-1],), self.rms.weight)


def test_a_norm_over_a_computed_shape_is_a_layer(capture: str) -> None:
    model = randomise(ComputedShape()).eval()
    module = fxprune.trace(model, torch.randn(2, 6), capture=capture, check=True)
    kinds = {type(module.get_submodule(str(n.target))) for n in module.graph.nodes if n.op == "call_module"}
    assert kinds >= {nn.Linear, nn.LayerNorm}
    x = torch.randn(5, 6)
    torch.testing.assert_close(module(x), model(x))
    pruned = fxprune.prune(nn.Sequential(model, nn.Linear(8, 2)), 0.5, example_inputs=x, capture=capture)
    assert pruned.get_parameter("0.norm.weight").shape == (4,)


class CalledBothWays(nn.Module):
    """Weights of layers that are called, in functions with other options: a wider kernel, a softer norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.LayerNorm(8), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = nn.functional.conv2d(x, self.conv.weight, self.conv.bias, padding=2, dilation=2)
        x = (self.conv(x) + wide).relu().mean((2, 3))
        soft = nn.functional.layer_norm(x, (8,), self.norm.weight, self.norm.bias, 0.5)
        return self.head(soft + self.norm(x))


class Answers(nn.Module):
    """An embedding that is the last layer's weight as well."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.fc = nn.Embedding(20, 8), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(self.fc(self.words(x)).relu() + self.words(x), self.words.weight)


@pytest.mark.parametrize(
    ("cls", "x"), [(CalledBothWays, torch.randn(2, 3, 6, 6)), (Answers, torch.arange(6)[None])]
)
def test_a_layer_that_is_called_stays_itself(cls: type[nn.Module], x: torch.Tensor, capture: str) -> None:
    """Both calls had the function's options, in silence where those fit."""
    model = randomise(cls().eval())
    whole, _ = certified_at((0.0, 0.5), model, x, capture)
    torch.testing.assert_close(whole(x), model(x))
