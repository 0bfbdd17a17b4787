"""Which of equal elements is the largest is a matter of rounding: no error, and no cover for one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from helpers import by_capture, randomise
from torch import Tensor, nn

import fxprune
from fxprune.certify.weights import PlannedWeights

Choose = Callable[[Tensor], Tensor]

CHOICES: dict[str, Choose] = {
    "topk": lambda scores: scores.topk(3, dim=1).indices,
    "sort": lambda scores: scores.sort(1, descending=True)[1][:, :3],
    "argsort": lambda scores: torch.argsort(scores, dim=1, descending=True)[:, :3],
    "max": lambda scores: scores.max(dim=1, keepdim=True)[1],
    "argmax": lambda scores: scores.argmax(1, keepdim=True),
    "argmin": lambda scores: torch.argmin(scores, dim=1).unsqueeze(1),
}


class Chosen(nn.Module):
    """Tokens in pairs of nearly equal scores: a pair differs by rounding alone, and in what it holds."""

    def __init__(self, choose: Choose) -> None:
        super().__init__()
        self.choose = choose
        self.embed, self.hidden = nn.Linear(6, 16), nn.Linear(16, 32)
        self.score, self.head = nn.Linear(32, 1), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        # The same sums twice, of another order: equal but for rounding.
        scores = self.score(self.hidden(x).tanh()).squeeze(-1)
        scores = torch.cat([scores, self.score(self.hidden(x * 3 / 3).tanh()).squeeze(-1)], 1)
        x = torch.cat([x, -x], 1)
        best = self.choose(scores)
        return self.head(x.gather(1, best.unsqueeze(-1).expand(-1, -1, x.shape[-1])))


@pytest.mark.parametrize(("name", "capture"), by_capture(CHOICES, 3))
def test_a_choice_among_equals_is_no_error(name: str, capture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = randomise(Chosen(CHOICES[name])).eval()
    pruned = fxprune.prune(model, 0.5, example_inputs=torch.randn(2, 7, 6), capture=capture)
    found = [
        fxprune.verify(model, pruned, example_inputs=torch.randn(8, 7, 6, generator=seeded(seed)))
        for seed in range(8)
    ]
    assert all(certificate.exact for certificate in found)
    assert any("among equal elements" in certificate.words for certificate in found)

    monkeypatch.setattr(PlannedWeights, "changed", lambda self, pruned: {})  # outputs alone tell
    with torch.no_grad():
        pruned.score.weight.mul_(-1)
    assert fxprune.verify(model, pruned) > 1e-3


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_choice_of_others_is_an_error() -> None:
    """In an edited graph: the smallest for the largest."""
    model = randomise(Chosen(CHOICES["topk"])).eval()
    pruned = fxprune.prune(model, 0.5, example_inputs=torch.randn(2, 7, 6))
    node = next(n for n in pruned.graph.nodes if n.name == "topk")
    node.update_kwarg("largest", False)
    pruned.recompile()
    assert fxprune.verify(model, pruned) > 1e-3


def test_a_choice_of_equal_values_in_other_places_is_an_error() -> None:
    """In an edited graph: the scores the other way round, in which the original's indices choose others."""
    model = randomise(Chosen(CHOICES["topk"])).eval()
    pruned = fxprune.prune(model, 0.5, example_inputs=torch.randn(2, 7, 6))
    node = next(n for n in pruned.graph.nodes if n.name == "topk")
    with pruned.graph.inserting_before(node):
        node.replace_input_with(node.args[0], pruned.graph.call_function(torch.flip, (node.args[0], [1])))
    pruned.recompile()
    assert fxprune.verify(model, pruned) > 1e-3


class QueriesByMaximum(nn.Module):
    """Pairs of queries [batch, pairs, 2, heads, head_dim] by their maximum: heads and head_dim apart."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(8, 24) for _ in range(3))
        self.out = nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = (layer(x).view(b, n, 4, 6) for layer in (self.q, self.k, self.v))
        q = q.view(b, n // 2, 2, 4, 6).max(dim=2).values
        weights = torch.einsum("bihd,bjhd->bhij", q, k).softmax(-1)
        return self.out(torch.einsum("bhij,bjhd->bihd", weights, v).flatten(2))


def test_a_choice_where_each_head_keeps_elements_of_its_own() -> None:
    """The certificate ended in a KeyError."""
    model = randomise(QueriesByMaximum().eval())
    pruned = fxprune.prune(model, 0.5, attention="head_dim", example_inputs=torch.randn(2, 6, 8))
    assert fxprune.verify(model, pruned) < 1e-8
