"""What a model's own code put on its modules before it was pruned is no trouble to its result."""

from __future__ import annotations

import copy

import torch
from helpers import assert_same, randomise, run
from torch import Tensor, nn

import fxprune


class Remembers(nn.Module):
    """Keeps a map of its last call, which may belong to a graph of derivatives."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 4)
        self.seen: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        self.seen = h.softmax(-1)
        return self.b(h.relu())


def test_a_tensor_with_derivatives_is_remembered_without_them() -> None:
    model, x = randomise(Remembers().eval()), torch.randn(2, 8)
    model(x).sum().backward()
    for form in ("graph", "module"):
        pruned = fxprune.prune(model, 0.5, example_inputs=x, form=form)
        assert_same(run(copy.deepcopy(pruned), x), run(pruned, x), 0)
        assert fxprune.verify(model, pruned, example_inputs=x).exact
