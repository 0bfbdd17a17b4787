"""A graph that is right for the example's shapes alone, and says so nowhere, is refused where it is made."""

from __future__ import annotations

import operator
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn

from fxprune.capture.other_shapes import refuse_other_values
from fxprune.errors import CaptureError
from fxprune.graph.copies import structural_copy
from fxprune.graph.example import Example


class Model(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.fc, self.function = nn.Linear(8, 8), function

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) * self.function(x)


class Pixels(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)) * x.shape[3]


def with_numbers(model: nn.Module) -> fx.GraphModule:
    """The graph of a model in which sizes are numbers, as of (2, 5, 8) or (2, 3, 64, 64)."""
    graph = fx.symbolic_trace(model)
    for node in graph.graph.nodes:
        if node.target is operator.getitem and node.args[0].args[1] == "shape":
            sizes = (2, 3, 64, 64) if isinstance(model, Pixels) else (2, 5, 8)
            node.replace_all_uses_with(sizes[node.args[1]])
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph


@pytest.mark.parametrize(
    "model",
    [Model(lambda x: x.shape[0]), Model(lambda x: x.shape[1]), Pixels()],
    ids=["batch", "length", "image"],
)
def test_a_number_in_the_place_of_a_size_is_seen(model: nn.Module) -> None:
    x = torch.zeros(2, 3, 64, 64) if isinstance(model, Pixels) else torch.zeros(2, 5, 8)
    refuse_other_values(model, fx.symbolic_trace(model), Example((x,)))
    with pytest.raises(CaptureError, match="computes something else"):
        refuse_other_values(model, with_numbers(model), Example((x,)))


@pytest.mark.parametrize("function", [lambda x: x.shape[0], lambda x: x.shape[1]], ids=["batch", "length"])
def test_weights_made_in_inference_mode_are_compared(function: Callable[[Tensor], Tensor]) -> None:
    with torch.inference_mode():
        model = Model(function)
    assert model.fc.weight.is_inference()
    with torch.no_grad():
        refuse_other_values(model, fx.symbolic_trace(model), Example((torch.zeros(2, 5, 8),)))
        with pytest.raises(CaptureError, match="computes something else"):
            refuse_other_values(model, with_numbers(model), Example((torch.zeros(2, 5, 8),)))


def test_what_the_graph_refuses_is_no_error() -> None:
    model = Model(lambda x: x.shape[1])
    graph = with_numbers(model)
    placeholder = next(iter(graph.graph.nodes))
    with graph.graph.inserting_after(placeholder):
        guard = graph.graph.call_function(torch.reshape, (placeholder, (-1, 5, 8)))
    placeholder.replace_all_uses_with(guard, delete_user_cb=lambda user: user is not guard)
    graph.recompile()
    for n in (1, 2):
        refuse_other_values(model, graph, Example((torch.zeros(n, 5, 8),)))


def test_what_the_model_refuses_is_no_error() -> None:
    model = Model(lambda x: x.shape[1] if x.shape[1] == 5 else x.no_such_name)
    traced = Model(lambda x: x.shape[1])
    traced.fc = model.fc
    refuse_other_values(model, with_numbers(traced), Example((torch.zeros(2, 5, 8),)))


class Convolved(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer.double()

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.layer(x))


LAYERS = [
    (nn.Conv1d(3, 8, 3, padding=1), {"padding": (2,), "dilation": (2,)}),
    (nn.Conv2d(3, 8, 3, padding=1), {"padding": (2, 2), "dilation": (2, 2)}),
    (nn.Conv2d(3, 8, 3, padding=(1, 3), dilation=(1, 3)), {"padding": (3, 1), "dilation": (3, 1)}),
    (nn.Conv2d(6, 8, 3, padding=1, stride=2, groups=2), {"padding": (2, 2), "dilation": (2, 2)}),
    (nn.Conv3d(3, 4, 3, padding=1), {"padding": (1, 2, 1), "dilation": (1, 2, 1)}),
    (nn.ConvTranspose2d(3, 8, 3, padding=1), {"padding": (3, 1), "dilation": (3, 1)}),
]


@pytest.mark.parametrize(("layer", "others"), LAYERS)
def test_options_of_a_convolution_are_seen(layer: nn.Module, others: dict[str, tuple[int, ...]]) -> None:
    """Where the outputs are as large with others, too."""
    n = layer.weight.ndim - 2
    x = torch.randn(2, layer.in_channels, *(12, 16, 20)[:n], dtype=torch.float64)
    model = Convolved(layer).eval()
    refuse_other_values(model, fx.symbolic_trace(model), Example((x,)))
    other = structural_copy(model)
    for name, value in others.items():
        setattr(other.layer, name, value)
    assert other(x).shape == model(x).shape
    with pytest.raises(CaptureError, match="computes something else"):
        refuse_other_values(model, fx.symbolic_trace(other), Example((x,)))
