"""An instance whose code traces to the pruned graph needs no run; any other number, weight or layer shows."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import small_hf_vit, small_swin, small_vit
from torch import Tensor, fx, nn

import fxprune
from fxprune.analysis.analyze import analyze
from fxprune.capture.trace import capture_alike
from fxprune.certify.zoo import randomise
from fxprune.compiler.native import own_class
from fxprune.compiler.native.same_graph import differences
from fxprune.compiler.native.size_expressions import SizeReader, same_size
from fxprune.result.forms import graph_form
from fxprune.result.pruned_module import record_of


def image(size: int = 32, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("build", [small_vit, small_swin, small_hf_vit])
def test_no_model_is_run_where_the_graphs_are_the_same(
    build: Callable[[], nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any) -> None:
        raise AssertionError("it was run")

    monkeypatch.setattr(own_class, "own_code_of", refuse)
    model = build()
    pruned = fxprune.prune(model, 0.5, example_inputs=image(), form="module")
    assert record_of(pruned).own.is_whole
    assert fxprune.verify(model, pruned, example_inputs=image(batch=3)) < 1e-8


def _other_number(model: Any) -> None:
    model.blocks[0].attn.num_heads //= 2
    model.blocks[0].attn.head_dim *= 2


def _other_weight(model: Any) -> None:
    model.blocks[0].mlp.fc2.weight = nn.Parameter(model.blocks[0].mlp.fc2.weight.detach() + 1)


def _other_setting(model: Any) -> None:
    model.norm.eps *= 2


def _other_layer(model: Any) -> None:
    model.blocks[0].mlp.act = nn.ReLU()


def _other_token(model: Any) -> None:
    model.cls_token = nn.Parameter(model.cls_token.detach() * 2)


def _one_block_less(model: Any) -> None:
    model.blocks = model.blocks[:-1]


@pytest.mark.parametrize(
    "change",
    [_other_number, _other_weight, _other_setting, _other_layer, _other_token, _one_block_less],
)
def test_whatever_is_changed_in_an_instance_makes_its_graph_another(change: Callable[[Any], None]) -> None:
    model = small_vit()
    analysis = analyze(model, example_inputs=image())
    pruned = fxprune.prune(model, 0.5, example_inputs=image(), form="module")
    graph = copy.deepcopy(graph_form(pruned))  # which shares layers with the instance

    def found() -> list[Any]:
        own = capture_alike(pruned, analysis.captured)
        return [*differences(analysis.module, own.module, graph)]

    assert not found()
    change(pruned)
    assert found()


def test_sizes_are_compared_as_functions_of_sizes() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    x.meta["val"] = torch.empty(6, 4, device="meta")

    def node(target: Any, *args: Any, val: int) -> fx.Node:
        made = graph.call_function(target, args)
        made.meta["val"] = val
        return made

    shape = graph.call_function(getattr, (x, "shape"))
    rows = node(operator.getitem, shape, 0, val=6)
    last = graph.call_method("size", (x, -1))
    last.meta["val"] = 4
    flat = node(operator.mul, rows, last, val=24)
    halves = node(operator.mul, node(operator.floordiv, flat, 2, val=12), 2, val=24)
    other = node(operator.add, rows, 18, val=24)
    reader = SizeReader({n.name: n for n in graph.nodes})
    assert same_size(halves, flat, reader)
    assert not same_size(other, flat, reader)  # the same number for this input alone
    assert not same_size(24, flat, reader)


class _OnlyInTraining(nn.Module):
    """Uses a width in train mode alone, beside a number that stays."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(12, 32), nn.Linear(32, 4)
        self.width, self.channels = 32, 32.0

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.fc1(x).relu() * (self.width / self.channels if self.training else 1.0))


class _OnlyForHighImages(nn.Module):
    """Reads a width for high images alone."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 4, 1)
        self.per_channel = 1 / 32

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        rows = x.shape[-2] // 16 * x.shape[1] * self.per_channel
        return self.head(x * rows)


@pytest.mark.parametrize(
    ("build", "x"), [(_OnlyInTraining, torch.ones(2, 12)), (_OnlyForHighImages, torch.ones(2, 3, 16, 16))]
)
def test_train_mode_and_other_images_are_part_of_the_proof(build: type[nn.Module], x: Tensor) -> None:
    model = randomise(build())
    pruned = fxprune.prune(model, 0.5, example_inputs=x, form="module")
    graph = graph_form(pruned)
    for given in (x, torch.cat([x, x], -2) if x.ndim == 4 else x):
        for training in (False, True):
            torch.testing.assert_close(pruned.train(training)(given), graph.train(training)(given))


class _ComputedBias(nn.Module):
    """Attention whose scale follows its head dim, behind a bias that is computed: nothing to fold it into."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.qkv, self.proj = 4, nn.Linear(32, 96, bias=False), nn.Linear(32, 32)
        self.q_bias, self.v_bias = nn.Parameter(torch.ones(32)), nn.Parameter(torch.ones(32))

    def forward(self, x: Tensor) -> Tensor:
        bias = torch.cat([self.q_bias, torch.zeros_like(self.v_bias), self.v_bias])
        qkv = nn.functional.linear(x, self.qkv.weight, bias)
        q, k, v = qkv.reshape(*x.shape[:2], 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind()
        out = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.proj(out.transpose(1, 2).flatten(2))


class _NormWithoutWeights(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.head = nn.Conv2d(3, 32, 3), nn.InstanceNorm2d(32), nn.Conv2d(32, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.stem(x)).relu())


@pytest.mark.parametrize(
    ("build", "x"), [(_ComputedBias, torch.randn(2, 5, 32)), (_NormWithoutWeights, image(16))]
)
def test_scales_behind_a_computed_bias_and_norms_without_weights(build: type[nn.Module], x: Tensor) -> None:
    model = randomise(build())
    pruned = fxprune.prune(model, 0.5, example_inputs=x, attention="head_dim", form="module")
    assert fxprune.verify(model, pruned, example_inputs=x) < 1e-8
    torch.testing.assert_close(pruned(x), graph_form(pruned)(x))


class _LooksUnseen(nn.Module):
    """Takes its number of heads where nothing notes that it is read."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.qkv, self.proj = 4, nn.Linear(32, 96), nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        heads = self.__dict__["heads"]
        q, k, v = self.qkv(x).reshape(*x.shape[:2], 3, heads, 8).permute(2, 0, 3, 1, 4).unbind()
        out = ((q @ k.mT) * 8**-0.5).softmax(-1) @ v
        return self.proj(out.transpose(1, 2).flatten(2))


def test_a_number_that_is_read_unseen_is_no_silent_loss() -> None:
    model, x = randomise(_LooksUnseen().eval()), torch.randn(2, 5, 32)
    pruned = fxprune.prune(model, 0.5, example_inputs=x, form="module")
    assert pruned(x).shape == (2, 5, 32)
    assert fxprune.verify(model, pruned, example_inputs=x) < 1e-8
