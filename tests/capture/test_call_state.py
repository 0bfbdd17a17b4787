"""What a model computes from more than its arguments is refused, by either capture."""

from __future__ import annotations

import datetime
import functools
import random
import threading
import time
import uuid
from collections.abc import Callable
from time import perf_counter as clock
from typing import Any

import numpy as np
import pytest
import torch
from exactness import certified_at
from helpers import assert_same, randomise
from torch import Tensor, nn

import fxprune
from fxprune.capture.clocks import another_time
from fxprune.capture.held_state import HeldState
from fxprune.capture.reached import called
from fxprune.errors import CaptureError, TrainingError

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


# ---------------------------------------------------------------- chance that no tensor is


class Draws(Net):
    """A number of Python's, or of NumPy's, in every call."""

    def __init__(self, draw: Callable[[], Any]) -> None:
        super().__init__()
        self.draw = draw

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.a(x).relu() * self.draw())


class DrawsInTraining(Draws):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.a(x).relu() * (self.draw() if self.training else 1.0))


class DrawsForNothing(Draws):
    """Asks whether to leave a block out, which only train mode does."""

    def forward(self, x: Tensor) -> Tensor:
        left_out = self.draw() < 0.5
        x = self.a(x)
        return self.head(x if self.training and left_out else x.relu())


def uuid_of_now() -> float:
    return uuid.uuid4().int / 2**128


class Clock:
    """Looks at the time behind a name of its own, and has a method of which nobody calls it."""

    def now(self) -> float:
        return clock() % 1

    def report(self) -> float:
        return time.time()


def of_numpy() -> Tensor:
    return torch.from_numpy(np.random.rand(1).astype("float32"))


@pytest.mark.parametrize(
    "draw",
    [
        *(random.random, np.random.rand, of_numpy, random.Random(0).random, np.random.default_rng(0).random),
        *(lambda: clock() % 1, uuid_of_now, lambda: np.random.default_rng().random(), Clock().now),
    ],
    ids=["python", "numpy", "array", "held python", "held numpy", "clock", "uuid", "new numpy", "held clock"],
)
def test_numbers_drawn_outside_of_torch_are_no_constants(draw: Callable[[], Any], capture: str) -> None:
    with pytest.raises(CaptureError, match=r"random generators give|\.item\(\)|values of a tensor"):
        fxprune.prune(randomise(Draws(draw).eval()), 0.5, example_inputs=X, capture=capture)


def test_numbers_drawn_in_train_mode_alone_are_refused_there(capture: str) -> None:
    model = randomise(DrawsInTraining(random.random).eval())
    whole, pruned = certified_at((0.0, 0.5), model, X, capture)
    assert_same(whole.eval()(X), model(X), 1e-6)
    with pytest.raises(TrainingError, match="runs in eval mode alone"):
        pruned.train()(X)


@pytest.mark.parametrize(
    "draw",
    [lambda: random.random(), lambda: np.random.rand(), lambda: random.uniform(0, 1)],
    ids=["python", "numpy", "uniform"],
)
def test_what_is_drawn_rarely_is_refused_as_well(draw: Callable[[], float], capture: str) -> None:
    class Skips(Net):
        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            skipped = self.training and draw() < 1e-9
            return self.head(x if skipped else x.relu())

    pruned = fxprune.prune(randomise(Skips().eval()), 0.5, example_inputs=X, capture=capture)
    with pytest.raises(TrainingError, match="runs in eval mode alone"):
        pruned.train()(X)


def test_a_method_that_no_call_runs_draws_nothing() -> None:
    """A model's class may have methods that look at clocks: it is captured once all the same."""
    model, held = Draws(lambda: 2.0), Clock()
    model.clock = held
    kept = HeldState(model)
    assert not any(f.__name__ in ("report", "now") for f in called(model, kept.functions()))
    model.draw = held.report
    assert any(f.__name__ == "report" for f in called(model, HeldState(model).functions()))


def test_another_time_is_that_of_one_thread() -> None:
    """Elsewhere clocks go on as they did, and a moment is one still."""
    began, seen = datetime.datetime.now(), list[Any]()

    def look() -> None:
        now, day = datetime.datetime.now(), datetime.date.today()
        seen.extend([now - began, day - began.date(), time.time()])
        seen.append(isinstance(began, datetime.datetime) and isinstance(began.date(), datetime.date))

    with another_time([look]):
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
        assert datetime.datetime.now() - began > datetime.timedelta(1000)
        assert isinstance(began, datetime.datetime)
    assert all(gone < datetime.timedelta(2) for gone in seen[:2]) and seen[3]
    assert seen[2] <= time.time()


def test_a_buffer_of_another_shape_is_refused_in_words() -> None:
    class Grows(Net):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("last", torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:
            self.last = self.a(x).relu().mean(0)
            return self.head(self.last + self.a(x))

    with pytest.raises(CaptureError, match=r"leaves the buffer last in another shape.*persistent=False"):
        fxprune.prune(Grows().eval(), 0.5, example_inputs=X)


def test_numbers_of_which_nothing_follows_are_no_matter(capture: str) -> None:
    model = randomise(DrawsForNothing(random.random).eval())
    whole, _ = certified_at((0.0, 0.5), model, X, capture)
    assert_same(whole.eval()(X), model(X), 1e-6)


def test_whatever_else_code_asks_of_a_stand_in_shows_in_a_call() -> None:
    """No question of its own is watched here: the graph and the model are run side by side."""

    class Asking(nn.Module):
        def __init__(self, asks: Callable[[Tensor], bool]) -> None:
            super().__init__()
            self.first, self.last, self.asks = nn.Linear(6, 8), nn.Linear(8, 4), asks

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.first(x).relu() * (2 if self.asks(x) else 1))

    x = torch.randn(2, 6)
    model = Asking(lambda x: hasattr(x, "node"))
    with pytest.raises(CaptureError, match="computes something else than the model's code"):
        fxprune.trace(model, example_inputs=x, capture="symbolic")
    assert fxprune.verify(model, fxprune.prune(model, 0.5, example_inputs=x)).exact
    assert fxprune.trace(Asking(lambda x: hasattr(x, "norm")), example_inputs=x, capture="symbolic")


def kept_table(size: int, table: dict[int, Tensor]) -> Tensor:
    if size not in table:
        table[size] = torch.arange(float(size))[:, None] @ torch.ones(1, 8)
    return table[size]


def test_looking_at_a_call_leaves_no_table_behind_that_is_none_of_the_models() -> None:
    """Products with weights are sketched while a graph is held beside its model; what code keeps is not."""
    tables: dict[int, Tensor] = {}
    cached = functools.lru_cache(lambda size: torch.arange(float(size))[:, None] @ torch.ones(1, 8))

    class Kept(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.first(x) + kept_table(5, tables) + cached(5))

    model, x = randomise(Kept().eval()), torch.randn(2, 5, 6)
    wanted = torch.arange(5.0)[:, None] @ torch.ones(1, 8)
    pruned = fxprune.prune(model, 0.0, example_inputs=x, capture="symbolic")
    assert torch.equal(cached(5), wanted) and torch.equal(kept_table(5, tables), wanted)
    assert_same(pruned(x), model(x))
