"""A pruned layer describes itself as it is: `in_features` and its like follow the weights."""

from __future__ import annotations

import pickle

import pytest
import torch
from exactness import assert_exact
from helpers import randomise
from torch import Tensor, nn

import fxprune

Widths = dict[str, int]


def around(layer: nn.Module, n: int, channels: int) -> nn.Module:
    """The layer between two convolutions over n dimensions (none: two linear layers)."""
    if n == 0:
        return nn.Sequential(nn.Linear(3, 16), layer, nn.Linear(channels, 5))
    conv = getattr(nn, f"Conv{n}d")
    return nn.Sequential(conv(3, 16, 1), layer, conv(channels, 5, 1))


def cases() -> list[tuple[nn.Module, int, int, Widths]]:
    """A layer, the dimensions that it works on, its output's channels, its widths at a half."""
    found: list[tuple[nn.Module, int, int, Widths]] = [
        (nn.Linear(16, 24), 0, 24, {"in_features": 8, "out_features": 12}),
        (nn.PReLU(16), 2, 16, {"num_parameters": 8}),
        (nn.PReLU(), 2, 16, {"num_parameters": 1}),
        (nn.GroupNorm(4, 16), 2, 16, {"num_channels": 8, "num_groups": 2}),
        (nn.GroupNorm(4, 16, affine=False), 2, 16, {"num_channels": 8, "num_groups": 2}),
    ]
    for n in (1, 2, 3):
        conv, transposed = (getattr(nn, f"{name}{n}d") for name in ("Conv", "ConvTranspose"))
        widths = {"in_channels": 8, "out_channels": 12}
        depthwise = {"in_channels": 8, "out_channels": 8, "groups": 8}
        norm = {"num_features": 8}
        found += [
            (conv(16, 24, 3, padding=1), n, 24, widths),
            (conv(16, 16, 3, padding=1, groups=16), n, 16, depthwise),
            (conv(16, 24, 3, padding=1, groups=4), n, 24, widths | {"groups": 2}),
            (transposed(16, 24, 2, 2), n, 24, widths),
            (transposed(16, 24, 2, 2, groups=4), n, 24, widths | {"groups": 2}),
            (getattr(nn, f"BatchNorm{n}d")(16), n, 16, norm),
            (getattr(nn, f"BatchNorm{n}d")(16, affine=False), n, 16, norm),
            (nn.SyncBatchNorm(16), n, 16, norm),
            (getattr(nn, f"InstanceNorm{n}d")(16), n, 16, norm),
            (getattr(nn, f"InstanceNorm{n}d")(16, affine=True), n, 16, norm),
            (getattr(nn, f"BatchNorm{n}d")(16, affine=False, track_running_stats=False), n, 16, norm),
            (getattr(nn, f"InstanceNorm{n}d")(16, track_running_stats=True), n, 16, norm),
        ]
    return found


@pytest.mark.parametrize(("layer", "n", "channels", "widths"), cases(), ids=lambda case: str(case)[:60])
def test_a_pruned_layer_knows_its_widths(layer: nn.Module, n: int, channels: int, widths: Widths) -> None:
    model = randomise(around(layer, n, channels).eval())
    x = torch.zeros(2, 3, *[4] * n)
    pruned = fxprune.prune(model, 0.5, example_inputs=x)
    got = pruned.get_submodule("1")
    assert type(got) is type(layer)
    assert {name: getattr(got, name) for name in widths} == widths
    assert_exact(model, pruned)


class Words(nn.Module):
    """Looks up numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.norm, self.head = nn.Embedding(10, 16), nn.LayerNorm(16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.words(x)))


def test_a_pruned_embedding_knows_its_widths(capture: str) -> None:
    model, x = randomise(Words().eval()), torch.randint(10, (2, 6))
    pruned = fxprune.prune(model, 0.5, example_inputs=x, capture=capture)
    assert pruned.get_parameter("words.weight").shape == (10, 8)
    assert pruned.get_submodule("norm").normalized_shape == (8,)
    if capture == "symbolic":  # export leaves the function that it is
        words = pruned.get_submodule("words")
        assert (words.num_embeddings, words.embedding_dim) == (10, 8)


class Remembers(nn.Module):
    """A recurrent layer, or a cell called for each step, between two linear layers."""

    def __init__(self, layer: nn.Module, width: int) -> None:
        super().__init__()
        self.first, self.layer, self.last = nn.Linear(3, 16), layer, nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        if isinstance(self.layer, nn.RNNBase):
            return self.last(self.layer(y)[0].relu())
        state = None
        for step in range(3):
            state = self.layer(y[:, step], state)
        return self.last(state[0] if isinstance(state, tuple) else state)


@pytest.mark.parametrize("kind", ["RNN", "GRU", "LSTM"])
def test_a_recurrent_layer_reads_less(kind: str, capture: str) -> None:
    layer = getattr(nn, kind)(16, 12, num_layers=2, bidirectional=True, batch_first=True)
    model, x = randomise(Remembers(layer, 24).eval()), torch.randn(2, 4, 3)
    pruned = fxprune.prune(model, 0.5, example_inputs=x, capture=capture)
    assert pruned.get_parameter("layer.weight_ih_l0_reverse").shape[1] == 8
    assert_exact(model, pruned, 1, 3)
    pruned.train()(x).sum().backward()
    before = pruned(x)
    with torch.no_grad():
        for parameter in pruned.parameters():
            assert parameter.grad is not None
            parameter += 0.1
    assert not torch.equal(pruned(x), before)
    if capture == "symbolic":
        assert pruned.get_submodule("layer").input_size == 8
        torch.testing.assert_close(pickle.loads(pickle.dumps(pruned))(x), pruned(x))


@pytest.mark.parametrize("kind", ["GRUCell", "LSTMCell", "RNNCell"])
def test_a_recurrent_cell_is_half_as_wide(kind: str, capture: str) -> None:
    layer = getattr(nn, kind)(16, 12)
    model, x = randomise(Remembers(layer, 12).eval()), torch.randn(2, 4, 3)
    pruned = fxprune.prune(model, 0.5, example_inputs=x, capture=capture)
    assert pruned.get_parameter("layer.weight_ih").shape == (layer.weight_ih.shape[0] // 2, 8)
    assert_exact(model, pruned, 1, 3)
    pruned.train()(x).sum().backward()
    if capture == "symbolic":
        cell = pruned.get_submodule("layer")
        assert (cell.input_size, cell.hidden_size) == (8, 6)


class Between(nn.Module):
    """A layer of two inputs."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.a, self.b, self.layer, self.last = nn.Linear(3, 16), nn.Linear(3, 12), layer, nn.Linear(20, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.layer(self.a(x), self.b(x)))


def test_a_bilinear_layer_knows_its_widths(capture: str) -> None:
    model, x = randomise(Between(nn.Bilinear(16, 12, 20)).eval()), torch.randn(2, 3)
    pruned = fxprune.prune(model, 0.5, example_inputs=x, capture=capture)
    assert pruned.get_parameter("layer.weight").shape == (10, 8, 12)  # one factor of two
    assert_exact(model, pruned, 1, 3)
    if capture == "symbolic":
        layer = pruned.get_submodule("layer")
        assert (layer.in1_features, layer.in2_features, layer.out_features) == (8, 12, 10)
