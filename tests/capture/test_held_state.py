"""What a model's code keeps for its next call is followed or refused; nothing of a capture stays behind."""

from __future__ import annotations

import collections
import contextlib
import copy
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from exactness import certified_at
from helpers import assert_same, by_capture, randomise
from torch import Tensor, nn

import fxprune
from fxprune.capture.held_state import HeldState
from fxprune.errors import CaptureError

X = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
SEEN: list[Tensor] = []
TABLES: dict[Any, Tensor] = {}


class Net(nn.Module):
    """What it keeps of a call is what `between` says."""

    shared: Any = 0.0

    def __init__(self, between: Callable[[Net, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(8, 12), nn.Linear(12, 8), nn.Linear(8, 3)
        self.mean = torch.zeros(8, dtype=torch.float64)
        self.last: Any = None
        self.memory: list[Tensor] = []
        self.queue: collections.deque[Tensor] = collections.deque(maxlen=2)
        self.named: dict[Any, Any] = {}
        self.register_buffer("kept", torch.zeros(8), persistent=False)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.b(self.a(x).relu())
        return self.head(type(self).between_of(self, x)).mean(1)

    def between_of(self, x: Tensor) -> Tensor:
        return self.between(self, x)


def average(net: Net, x: Tensor) -> Tensor:
    net.mean = 0.9 * net.mean + 0.1 * x.detach().mean((0, 1))
    return x + net.mean


def difference(net: Net, x: Tensor) -> Tensor:
    moved = x if net.last is None else x - net.last
    net.last = x.detach()
    return moved


def remember(net: Net, x: Tensor) -> Tensor:
    net.memory.append(x.mean())
    return x + torch.stack(net.memory).mean()


def queued(net: Net, x: Tensor) -> Tensor:
    net.queue.append(x.mean())
    return x + sum(net.queue)


def in_a_dict(net: Net, x: Tensor) -> Tensor:
    x = x + net.named.get("mean", 0.0)
    net.named["mean"] = x.mean()
    return x


def in_a_global(net: Net, x: Tensor) -> Tensor:
    x = x + SEEN[-1] if SEEN else x
    SEEN.append(x.mean())
    return x


def in_the_class(net: Net, x: Tensor) -> Tensor:
    x = x + Net.shared
    Net.shared = x.mean()
    return x


def by_default(net: Net, x: Tensor, seen: list[Any] = []) -> Tensor:  # noqa: B006
    seen.append(x.mean())
    return x + sum(seen)


def in_a_closure() -> Callable[[Net, Tensor], Tensor]:
    held: Any = 0.0

    def between(net: Net, x: Tensor) -> Tensor:
        nonlocal held
        x = x + held
        held = x.mean()
        return x

    return between


def map_of_attention(net: Net, x: Tensor) -> Tensor:
    net.last = x.softmax(-1)
    net.memory[:] = [x]
    return x


def table(net: Net, x: Tensor) -> Tensor:
    if net.last is None or len(net.last) != x.shape[1]:
        net.last = torch.arange(x.shape[1], dtype=x.dtype).sin()
    return x + net.last[:, None]


def tables(net: Net, x: Tensor) -> Tensor:
    n = x.shape[1]
    if n not in net.named:
        net.named[n] = torch.arange(n, dtype=x.dtype).cos()
    if n not in TABLES:
        TABLES[n] = torch.arange(n, dtype=x.dtype).sin()
    return x + net.named[n][:, None] * TABLES[n][:, None]


def buffer(net: Net, x: Tensor) -> Tensor:
    net.kept = 0.5 * net.kept + x.detach().mean((0, 1))
    return x + net.kept


def in_place(net: Net, x: Tensor) -> Tensor:
    net.mean.mul_(0.5).add_(x.detach().mean((0, 1)))
    return x + net.mean


def steps(net: Net, x: Tensor) -> Tensor:
    net.mean += 1
    return x * net.mean


REFUSED = {
    "average": average,
    "difference": difference,
    "remember": remember,
    "queued": queued,
    "in_a_dict": in_a_dict,
    "in_a_global": in_a_global,
    "in_the_class": in_the_class,
    "by_default": by_default,
    "in_a_closure": in_a_closure(),
}


def net(between: Callable[[Net, Tensor], Tensor]) -> Net:
    return randomise(Net(between)).double().eval()


@pytest.fixture(autouse=True)
def _nothing_stays() -> Any:
    """Nothing that a capture puts into a model's globals, classes and defaults is there afterwards."""
    yield
    assert SEEN == []
    assert TABLES == {}
    assert Net.shared == 0.0
    assert by_default.__defaults__ == ([],)


@pytest.mark.parametrize(("name", "capture"), by_capture(REFUSED, 3))
def test_what_the_next_call_reads_is_refused(name: str, capture: str) -> None:
    model = net(REFUSED[name])
    before = dict(vars(model))
    with pytest.raises(CaptureError, match="its second call computes something else than its first"):
        fxprune.prune(model, 0.5, example_inputs=X, capture=capture)
    assert vars(model) == before
    assert model.memory == []


@pytest.mark.parametrize("between", [map_of_attention, table, tables])
def test_what_no_call_depends_on_is_taken(between: Any, capture: str) -> None:
    model = net(between)
    same, _ = certified_at((0.0, 0.5), model, X, capture)
    assert (model.last, model.memory, model.named) == (None, [], {})
    dense = copy.deepcopy(model)
    with torch.no_grad():
        for x in (X, X.flip(0), X[:1]):
            assert_same(same(x), dense(x), 1e-12)
    TABLES.clear()


@pytest.mark.parametrize("between", [buffer, in_place, steps])
def test_export_follows_what_is_written_to_a_tensor(between: Any) -> None:
    model = net(between)
    same = fxprune.prune(model, 0.0, example_inputs=X)
    assert model.mean.count_nonzero() == 0
    dense = copy.deepcopy(model)
    with torch.no_grad():
        for x in (X, X.flip(0), X):
            assert_same(same(x), dense(x), 1e-12)


def test_the_error_says_what_changes() -> None:
    with pytest.raises(CaptureError, match="since its code changes last: call the model once before"):
        fxprune.prune(net(difference), 0.5, example_inputs=X)


def test_state_is_named_and_put_back() -> None:
    model = net(map_of_attention)
    held = HeldState(model)
    assert held.changed() == []
    model.memory.append(X)
    model.named["a"] = 1
    model.last = 3
    model.mean.add_(1)
    SEEN.append(X)
    Net.shared = 2.0
    assert sorted(held.changed()) == ["Net.shared", "last", "mean", "memory", "named"]
    held.restore()
    assert held.changed() == []
    assert (model.last, model.memory, model.named, Net.shared) == (None, [], {}, 0.0)
    assert model.mean.count_nonzero() == 0
    SEEN.clear()


def test_where_numbers_stay_what_became_none_or_went_is_put_back() -> None:
    model = net(map_of_attention)
    model.made, model.count = (made := X.clone()), 1
    held = HeldState(model)
    model.memory, model.count = None, 2
    del model.made
    held.restore(plain=False)
    assert (model.memory, model.made is made, model.count) == ([], True, 2)


class InTraining(Net):
    def between_of(self, x: Tensor) -> Tensor:
        if self.training:
            self.last = x.mean()
        return x


def test_what_train_mode_alone_sets_is_said() -> None:
    model = randomise(InTraining(table)).double().eval()
    notes = fxprune.analyze(model, example_inputs=X, capture="symbolic").notes
    assert any("train mode writes to last: the result runs in eval mode alone" in note for note in notes)


@functools.lru_cache(maxsize=4)
def cached(n: int) -> Tensor:
    return torch.arange(n).double().sin()


def test_a_cached_function_changes_no_buffer() -> None:
    """A call that fills such caches before the export is not the model's own."""

    def between(net: Net, x: Tensor) -> Tensor:
        return buffer(net, x) * cached(8)

    model = net(between)
    same = fxprune.prune(model, 0.0, example_inputs=X, capture="export")
    assert_same(same(X), copy.deepcopy(model)(X), 1e-12)


def kept(function: Any) -> Any:
    """As libraries decorate: the cache is in what the decorated function closes over."""
    cache = functools.lru_cache(maxsize=4)(function)

    @functools.wraps(function)
    def asked(*args: Any) -> Any:
        counted = {"calls": 1}  # a table: sizes are hashed as numbers beside one
        return cache(*args) if counted else None

    return asked


@kept
def steps_of(size: tuple[int]) -> Tensor:
    return torch.arange(size[0]).double().cos()


def test_a_cache_of_a_function_keeps_nothing_of_a_capture(capture: str) -> None:
    def between(net: Net, x: Tensor) -> Tensor:
        return x * steps_of((x.shape[1],))[:, None]

    model = net(between)
    same = fxprune.prune(model, 0.0, example_inputs=X, capture=capture)
    got = model(X)
    assert type(got) is Tensor
    assert_same(same(X), got, 1e-12)


def memo(function: Any) -> Any:
    """A decorator with a table of its own."""
    results: dict[Any, Any] = {}

    @functools.wraps(function)
    def asked(*args: Any) -> Any:
        if args not in results:
            results[args] = function(*args)
        return results[args]

    return asked


class Keeping(Net):
    @staticmethod
    @memo
    def angles(size: tuple[int]) -> Tensor:
        return torch.arange(size[0]).double().sin()

    def between_of(self, x: Tensor) -> Tensor:
        if not hasattr(type(self), "steps"):
            type(self).steps = torch.arange(x.shape[1]).double()
        return x * (self.angles((x.shape[1],)) + type(self).steps)[:, None]


def test_tables_of_decorators_and_new_attributes_of_classes_keep_nothing(capture: str) -> None:
    model = randomise(Keeping(table)).double().eval()
    with contextlib.suppress(CaptureError):  # what is kept may be refused
        fxprune.prune(model, 0.5, example_inputs=X, capture=capture)
    assert not hasattr(Keeping, "steps")
    assert type(model(X)) is Tensor
    del Keeping.steps


class Made(collections.OrderedDict[str, Any]):
    """A table of classes that hands out instances."""

    def __getitem__(self, key: str) -> Any:
        return super().__getitem__(key)()


LAYERS = Made(relu=nn.ReLU, gelu=nn.GELU)


def activated(net: Net, x: Tensor) -> Tensor:
    return LAYERS["relu"](x) if len(LAYERS) < 5 else LAYERS["gelu"](x)


def test_a_table_that_makes_what_it_gives_keeps_what_it_holds() -> None:
    net = randomise(Net(activated).double().eval())
    held = HeldState(net)
    kept = dict.__getitem__(LAYERS, "relu")
    dict.__setitem__(LAYERS, "relu", nn.Sigmoid)
    held.restore()
    assert dict.__getitem__(LAYERS, "relu") is kept is nn.ReLU
    fxprune.prune(net, 0.5, example_inputs=(X,))
    assert [dict.__getitem__(LAYERS, key) for key in LAYERS] == [nn.ReLU, nn.GELU]
    assert isinstance(LAYERS["relu"], nn.ReLU)
