"""What code sets on a layer before it calls it: a graph that holds the layer's call would lose it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import randomise
from torch import Tensor, nn

import fxprune
from fxprune.errors import CaptureError, InputSizeError, TrainingError


class Coded(nn.Module):
    """Layers of several kinds between two others, and what some code makes of them."""

    def __init__(self, code: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last, self.code = nn.Conv2d(3, 16, 3, padding=1), nn.Linear(16, 4), code
        self.conv, self.norm = nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.drop, self.pool, self.cut = nn.Dropout(0.2), nn.AdaptiveAvgPool2d(4), nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.code(self, self.first(x)).relu().mean((2, 3)))


def dilated(m: Any, y: Tensor) -> Tensor:
    m.conv.dilation = m.conv.padding = (2, 2)
    return m.conv(y)


def in_turn(m: Any, y: Tensor) -> Tensor:
    for rate in (1, 2, 3):
        m.conv.dilation = m.conv.padding = (rate, rate)
        y = m.conv(y)
    return y


def by_size(m: Any, y: Tensor) -> Tensor:
    rate = y.shape[2] // 4
    m.conv.dilation = m.conv.padding = (rate, rate)
    return m.conv(y)


def by_strides(m: Any, y: Tensor) -> Tensor:
    m.conv.stride = (2, 1)
    return m.conv(y)


def pooled(m: Any, y: Tensor) -> Tensor:
    m.pool.output_size = (y.shape[2] // 2, y.shape[3] // 2)
    return m.pool(y)


def cut(m: Any, y: Tensor) -> Tensor:
    m.cut.kernel_size = m.cut.stride = 3
    return m.cut(m.conv(y))


def dropped(m: Any, y: Tensor) -> Tensor:
    m.drop.p = 0.4
    return m.drop(m.conv(y))


def dropped_by_size(m: Any, y: Tensor) -> Tensor:
    m.drop.p = 0.5 * y.shape[2] / 32
    return m.drop(y)


def always_dropped(m: Any, y: Tensor) -> Tensor:
    m.drop.train()
    return m.drop(m.conv(y))


def never_dropped(m: Any, y: Tensor) -> Tensor:
    m.drop.eval()
    return m.drop(m.conv(y))


def of_batches(m: Any, y: Tensor) -> Tensor:
    m.norm.train()
    return m.norm(y)


def frozen(m: Any, y: Tensor) -> Tensor:
    m.norm.eval()
    return m.norm(y)


def frozen_by_hand(m: Any, y: Tensor) -> Tensor:
    m.norm.training = False
    return m.norm(m.conv(y))


def frozen_with_all(m: Any, y: Tensor) -> Tensor:
    for part in m.children():
        part.train(False)
    return m.norm(m.drop(y))


def rounder(m: Any, y: Tensor) -> Tensor:
    m.norm.eps = 0.5
    return m.norm(y)


SETTERS = [
    *(dilated, in_turn, by_size, by_strides, pooled, cut, dropped, dropped_by_size, always_dropped),
    *(never_dropped, of_batches, rounder, frozen, frozen_by_hand, frozen_with_all),
]
IN_TRAINING = (never_dropped, frozen, frozen_by_hand, frozen_with_all)  # in eval mode nothing is set


def model_of(code: Callable[[Any, Tensor], Tensor]) -> Coded:
    return randomise(Coded(code)).double().eval()


def images(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize("code", SETTERS)
def test_a_setting_that_code_changes(code: Callable[[Any, Tensor], Tensor]) -> None:
    """Symbolic tracing refuses it, and export computes with it: in both modes, other batches and sizes."""
    model, x = model_of(code), images(2, 3, 16, 16)
    if code not in IN_TRAINING:
        with pytest.raises(CaptureError, match="the code sets"):
            fxprune.trace(model, x, capture="symbolic")
    hold_both_modes(model, fxprune.trace(model, x), code in IN_TRAINING)


@pytest.mark.parametrize("code", IN_TRAINING)
def test_a_mode_that_code_sets(code: Callable[[Any, Tensor], Tensor], capture: str) -> None:
    model = model_of(code)
    hold_both_modes(model, fxprune.trace(model, images(2, 3, 16, 16), capture=capture), untrained=True)


def hold_both_modes(model: nn.Module, graph: nn.Module, untrained: bool) -> None:
    x = images(2, 3, 16, 16)
    for training in (False, True):
        own = copy.deepcopy(model).train(training)
        graph.train(training)
        for other in (x, images(5, 3, 16, 16), images(1, 3, 24, 32)):
            wanted = drawn_alike(own, other)
            try:
                got = drawn_alike(graph, other)
            except InputSizeError:
                assert other.shape[2] != 16
            except TrainingError:
                assert training and untrained
            else:
                assert torch.allclose(got, wanted, rtol=0, atol=1e-12)


class Frozen(Coded):
    """A model that leaves some of its layers in one mode, whatever it is put in."""

    def __init__(self, frozen: str, in_training: bool = False) -> None:
        super().__init__(lambda m, y: m.norm(m.drop(m.conv(y))))
        self.frozen, self.in_training = frozen, in_training

    def train(self, mode: bool = True) -> Frozen:
        super().train(mode)
        self.get_submodule(self.frozen).train(self.in_training)
        return self


@pytest.mark.parametrize("frozen", ["norm", "drop"])
def test_a_layer_that_train_leaves_in_eval_mode(frozen: str, capture: str) -> None:
    model, x = randomise(Frozen(frozen)).double().eval(), images(2, 3, 16, 16)
    hold_both_modes(model, fxprune.trace(model, x, capture=capture), untrained=True)
    pruned = fxprune.prune(model, 0.5, example_inputs=x, capture=capture)
    assert fxprune.verify(model, pruned) < 1e-9
    with pytest.raises(TrainingError, match=r"train\(\) leaves a (BatchNorm2d|Dropout) in eval mode"):
        pruned.train()(x)


OWN = [
    *(lambda: Coded(frozen), lambda: Coded(frozen_by_hand), lambda: Frozen("norm"), lambda: Frozen("drop")),
]


@pytest.mark.parametrize("make", OWN, ids=["in forward", "by hand", "norm", "drop"])
def test_an_instance_of_the_class_trains_by_its_own_code(make: Callable[[], nn.Module]) -> None:
    model, x = randomise(make()).double().eval(), images(2, 3, 16, 16)
    instance = fxprune.prune(model, 0.5, example_inputs=x, form="module")
    assert fxprune.verify(model, instance) < 1e-9
    assert torch.isfinite(drawn_alike(instance.train(), images(3, 3, 16, 16))).all()
    same = fxprune.prune(model, 0.0, example_inputs=x, form="module")
    hold_both_modes(model, same, untrained=False)


@pytest.mark.parametrize("frozen", ["norm", "drop"])
def test_a_layer_that_eval_leaves_in_train_mode(frozen: str, capture: str) -> None:
    model = randomise(Frozen(frozen, in_training=True)).double()
    with pytest.raises(CaptureError, match=r"eval\(\) leaves a (BatchNorm2d|Dropout) in train mode"):
        fxprune.trace(model, images(2, 3, 16, 16), capture=capture)


@pytest.mark.parametrize("frozen", ["conv", "last"])
def test_a_layer_alike_in_both_modes_may_stay_in_one(frozen: str, capture: str) -> None:
    model, x = randomise(Frozen(frozen)).double().eval(), images(2, 3, 16, 16)
    hold_both_modes(model, fxprune.trace(model, x, capture=capture), untrained=False)


def drawn_alike(model: nn.Module, x: Tensor) -> Tensor:
    torch.manual_seed(0)
    out: Tensor = model(x)
    return out


@pytest.mark.parametrize("code", [dilated, in_turn, by_size, rounder])
def test_such_models_are_pruned(code: Callable[[Any, Tensor], Tensor]) -> None:
    model, x = model_of(code), images(2, 3, 16, 16)
    pruned = fxprune.prune(model, 0.5, example_inputs=x)
    assert fxprune.verify(model, pruned) < 1e-9
    assert pruned.get_submodule("first").weight.shape[0] == 8


def set_as_it_is(m: Any, y: Tensor) -> Tensor:
    m.conv.padding, m.drop.p = (1, 1), 0.2
    return m.drop(m.conv(y))


def kept(m: Any, y: Tensor) -> Tensor:
    m.conv.seen = y
    y = m.conv(y)
    m.conv.seen = y
    return m.conv(y)


@pytest.mark.parametrize("code", [set_as_it_is, kept])
def test_what_changes_nothing_is_traced(code: Callable[[Any, Tensor], Tensor], capture: str) -> None:
    model = model_of(code)
    graph = fxprune.trace(model, images(2, 3, 16, 16), capture=capture)
    calls = {node.target for node in graph.graph.nodes if node.op == "call_module"}
    assert {"conv", "drop"} & calls == ({"conv"} if code is kept else {"conv", "drop"})
    x = images(3, 3, 24, 20)
    assert torch.allclose(graph(x), model(x), rtol=0, atol=1e-12)
