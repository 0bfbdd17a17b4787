"""Calls that code makes and nothing reads: the graph has none of them, an instance keeps its code."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from helpers import randomise
from torch import Tensor, fx, nn

import fxprune
from fxprune.compiler.native.boundaries import boundaries_of
from fxprune.compiler.native.watch import expected_of, fault_in
from fxprune.graph.example import Example
from fxprune.result.pruned_module import record_of

X = torch.randn(2, 3, 24, generator=torch.Generator().manual_seed(0)).double()


class Layers(nn.Module):
    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.fc, self.norm, self.head = nn.Linear(24, width), nn.LayerNorm(width), nn.Linear(width, 5)
        self.gain = 1.0


class AtTheEnd(Layers):
    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.gain * self.fc(x))
        self.norm(h[:, 0])
        return self.head(h)


class Pooling(Layers):
    """As a library's encoder does: a pair, of which the model around it reads one."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.norm(self.gain * self.fc(x))
        return h, self.norm(h[:, 0])


class Around(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.head = Pooling(48), nn.Linear(48, 5)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        y: Tensor = self.head(self.encoder(x)[0])
        return y if labels is None else nn.functional.cross_entropy(y.mean(1), labels)


class First(Layers):
    def forward(self, x: Tensor) -> Tensor:
        h = self.gain * self.fc(x)
        self.norm(h * 2)
        return self.head(self.norm(h))


class Between(Layers):
    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.gain * self.fc(x))
        self.norm(h[:, 0])
        return self.head(self.norm(h.tanh()))


class Equal(Layers):
    def forward(self, x: Tensor) -> Tensor:
        h = self.gain * self.fc(x)
        self.norm(h)
        return self.head(self.norm(h))


@pytest.mark.parametrize("cls", [AtTheEnd, Around, First, Between, Equal])
@pytest.mark.parametrize("capture", ["symbolic", "export"])
def test_a_call_that_nothing_depends_on_costs_no_code(cls: type[nn.Module], capture: str) -> None:
    model = randomise(cls().double().eval())
    pruned = fxprune.prune(model, 0.5, form="module", example_inputs=X, capture=capture)
    own = record_of(pruned).own
    assert type(pruned) is cls and own.is_whole and not own.parts and own.forward is None
    assert fxprune.verify(model, pruned, example_inputs=torch.cat([X, X])) < 1e-8
    if cls is Around:
        assert pruned(X, labels=torch.tensor([1, 2])).isfinite()


@pytest.mark.parametrize("cls", [First, Between, Pooling])
def test_a_difference_in_another_call_still_counts(cls: type[Layers]) -> None:
    model = randomise(cls().double().eval())
    graph = fx.symbolic_trace(model)
    last = graph.graph.output_node()
    last.args = (last.args[0][0],) if isinstance(last.args[0], tuple) else last.args
    graph.graph.eliminate_dead_code()
    graph.recompile()
    example = Example((X,), {})
    boundaries = boundaries_of(model, graph, [example], {})
    assert [call.is_dead for call in boundaries["norm"]].count(True) == 1
    expected = expected_of(graph, example, boundaries)
    found = fault_in(model, "", example, expected, Counter())
    assert found is None or cls is Pooling  # which returns more than the graph
    model.gain = 1.5
    found = fault_in(model, "", example, expected, Counter())
    assert found is not None and found.error.startswith("what goes into norm is not")
