"""A result is pruned again as the graph that it is, by the example that it was made with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import images
from test_copies import MODELS
from torch import fx, nn

import fxprune


def logits(out: Any) -> torch.Tensor:
    return out if isinstance(out, torch.Tensor) else out.logits


@pytest.mark.parametrize("name", MODELS)
def test_pruned_twice_is_exact(name: str, capture: str) -> None:
    first = fxprune.prune(MODELS[name](), 0.3, example_inputs=images(), capture=capture)
    second = fxprune.prune(first, 0.4)
    assert fxprune.verify(first, second) < 1e-8
    assert second.record.options["capture"] == "symbolic"  # its own graph, never exported
    assert second.record.dynamic == first.record.dynamic
    batch = 1 if first.record.dynamic else len(images())
    assert logits(second(torch.randn(batch, *images().shape[1:]))).shape[0] == batch
    assert second.record.untrained == first.record.untrained
    logits(second.train(not second.record.untrained)(images())).sum().backward()


def test_the_other_calls_take_a_result_too() -> None:
    first = fxprune.prune(MODELS["sizes"](), 0.3, example_inputs=images())
    assert torch.equal(fxprune.trace(first)(images()), first.eval()(images()))
    assert fxprune.analyze(first).groups
    traced = fx.symbolic_trace(first)
    assert fxprune.verify(traced, fxprune.prune(traced, 0.5, example_inputs=images())) < 1e-8


class Two(nn.Module):
    """A head of the user's own, whose code is followed."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(width, 12), nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.a(x).relu())


HEADS: dict[str, Callable[[int], nn.Module]] = {"own": Two, "plain": lambda n: nn.Linear(n, 7)}


@pytest.mark.parametrize("head", HEADS)
def test_a_replaced_head_is_pruned_with_the_rest(head: str) -> None:
    first = fxprune.prune(MODELS["vit"](), 0.3, example_inputs=images())
    first.head = HEADS[head](first.head.in_features)
    second = fxprune.prune(first, 0.5)
    assert fxprune.verify(first, second) < 1e-8
