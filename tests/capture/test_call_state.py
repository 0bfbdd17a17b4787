"""What a model computes from more than its arguments is refused, by either capture."""

from __future__ import annotations

import pytest
import torch
from exactness import certified_at
from helpers import assert_same, randomise
from torch import Tensor, nn

import fxprune
from fxprune.errors import CaptureError

X = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = nn.Linear(8, 12), nn.Linear(12, 4)
        self.calls, self.ready = 0, False


class Counts(Net):
    """What it computes follows the number of calls."""

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.head(self.a(x).relu() * self.calls)


class Begins(Net):
    """The first call does something else."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).relu()
        if not self.ready:
            x, self.ready = x * 3, True
        return self.head(x)


class CountsForItself(Net):
    """Counts, but nothing follows from it."""

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.head(self.a(x).relu())


class FollowsGradients(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).relu()
        return self.head(x * 2 if torch.is_grad_enabled() else x)


class AsksForGradients(Net):
    """Asks, and computes the same."""

    def forward(self, x: Tensor) -> Tensor:
        self.grad = torch.is_grad_enabled()
        return self.head(self.a(x).relu())


class LooksWhetherItIsTrained(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).relu()
        return self.head(x * 2 if x.requires_grad else x)


class LooksForAFunction(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).relu()
        return self.head(x if x.grad_fn is None else x * 2)


class LooksAtItsInput(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = x * 2 if x.requires_grad else x
        return self.head(self.a(x).relu())


class NotesWhetherItIsTrained(Net):
    """Looks, and computes the same."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).relu()
        self.seen = "trained" if x.requires_grad and not x.is_leaf else "not"
        return self.head(x)


@pytest.mark.parametrize("cls", [Counts, Begins])
def test_a_second_call_that_differs_is_refused(cls: type[Net], capture: str) -> None:
    with pytest.raises(CaptureError, match=r"its code changes (calls|ready): call the model once"):
        fxprune.prune(randomise(cls()).eval(), 0.5, example_inputs=X, capture=capture)


def test_what_settles_after_a_call_is_taken_then(capture: str) -> None:
    model = randomise(Begins()).eval()
    model(X)
    assert_same(fxprune.prune(model, 0.0, example_inputs=X, capture=capture)(X), model(X))


@pytest.mark.parametrize(
    "cls", [FollowsGradients, LooksWhetherItIsTrained, LooksForAFunction, LooksAtItsInput]
)
def test_a_question_after_gradients_is_refused_where_it_matters(cls: type[Net], capture: str) -> None:
    with pytest.raises(CaptureError, match=r"gradients are recorded .* at .*test_call_state.py:\d+"):
        fxprune.prune(randomise(cls()).eval(), 0.5, example_inputs=X, capture=capture)


@pytest.mark.parametrize("cls", [CountsForItself, AsksForGradients, NotesWhetherItIsTrained])
def test_what_changes_nothing_is_taken(cls: type[Net], capture: str) -> None:
    model = randomise(cls()).eval()
    (pruned,) = certified_at((0.5,), model, X, capture)
    assert pruned.get_parameter("a.weight").shape == (6, 8)
    assert (model.calls, model.ready) == (0, False)
