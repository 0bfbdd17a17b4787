"""Code that asks whether two tensors are one, by `is` or by their ids."""

from __future__ import annotations

import operator
from collections.abc import Callable
from operator import is_

import pytest
import torch
from helpers import assert_same, by_capture, randomise
from torch import Tensor, nn
from torch.nn import functional as F

import fxprune
from fxprune.errors import CaptureError, FxpruneError

X = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(0))
Way = Callable[[nn.Module, Tensor, Tensor], bool]


class Net(nn.Module):
    """Another way is another layer."""

    def __init__(self, one: Way) -> None:
        super().__init__()
        self.one, self.same, self.drop = one, nn.Identity(), nn.Dropout(0.1)
        self.a, self.b, self.c = nn.Linear(8, 16), nn.Linear(16, 4), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x).relu()
        return self.b(h) if self.one(self, x, h) else self.c(h)


def as_it_lies(m: nn.Module, x: Tensor, h: Tensor) -> bool:
    y = h.contiguous()
    return y is h


def an_input_as_it_lies(m: nn.Module, x: Tensor, h: Tensor) -> bool:
    y = x.contiguous()
    return y is not x


def cast(m: nn.Module, x: Tensor, h: Tensor) -> bool:
    y = h.to(x.dtype)
    return h is y


def cast_by_name(m: nn.Module, x: Tensor, h: Tensor) -> bool:
    y = h.float()
    return any(y is t for t in (x, h))


def through_a_layer(m: nn.Module, x: Tensor, h: Tensor) -> bool:
    y = m.same(h)
    return y is h


def through_a_dropout(m: nn.Module, x: Tensor, h: Tensor) -> bool:
    y = m.drop(h)
    return y is h


def through_a_function(m: nn.Module, x: Tensor, h: Tensor) -> bool:
    y = F.dropout(h, 0.1, m.training)
    return y is h


def without_a_name(m: nn.Module, x: Tensor, h: Tensor) -> bool:
    return h.contiguous() is h


def a_layer_without_a_name(m: nn.Module, x: Tensor, h: Tensor) -> bool:
    return h is m.drop(h)


def by_a_function(m: nn.Module, x: Tensor, h: Tensor) -> bool:
    return operator.is_(h.float(), h)


def flattened(m: nn.Module, x: Tensor, h: Tensor) -> bool:
    y = h.flatten(2)
    return y is h


def by_an_imported_function(m: nn.Module, x: Tensor, h: Tensor) -> bool:
    return is_(h.contiguous(), h)


def by_id(m: nn.Module, x: Tensor, h: Tensor) -> bool:
    return id(h.contiguous()) in {id(h)}


def by_id_of_an_input(m: nn.Module, x: Tensor, h: Tensor) -> bool:
    return id(x) == id(x.float())


WAYS = [
    *(as_it_lies, an_input_as_it_lies, cast, cast_by_name, through_a_layer, through_a_dropout),
    *(through_a_function, by_id, by_id_of_an_input, without_a_name, a_layer_without_a_name, flattened),
    *(by_a_function, by_an_imported_function),
]


@pytest.mark.parametrize(("one", "capture"), by_capture(WAYS, every=2))
def test_exact_or_refused(one: Way, capture: str) -> None:
    model = randomise(Net(one).eval())
    try:
        whole = fxprune.prune(model, 0.0, example_inputs=X, capture=capture)
    except CaptureError as error:
        assert "whether two values are one" in str(error) or "its id" in str(error)
        return
    for x in (X, X[:1], X.transpose(0, 1).contiguous().transpose(0, 1), X[:, :4]):
        try:
            found = whole(x)
        except FxpruneError:
            continue
        assert_same(found, model(x), 1e-6)


def one_name(m: nn.Module, x: Tensor, h: Tensor) -> bool:
    y = h.relu_()
    return y is h


def of_other_things(m: nn.Module, x: Tensor, h: Tensor) -> bool:
    mask, layer = None, m.a
    dtypes = x.dtype is torch.get_default_dtype() and type(m.a) is type(layer)
    return dtypes and mask is None and layer is m.a and h.contiguous() is not None


def are_one(a: Tensor, b: Tensor) -> bool:
    return a is b


def that_never_meet(m: nn.Module, x: Tensor, h: Tensor) -> bool:
    return are_one(h, m.drop(h) * 2) or are_one(h, h)


@pytest.mark.parametrize("one", [one_name, of_other_things])
def test_what_needs_no_answer_of_a_stand_in_is_captured(one: Way, capture: str) -> None:
    model = randomise(Net(one).eval())
    pruned = fxprune.prune(model, 0.5, example_inputs=X, capture=capture)
    assert fxprune.verify(model, pruned) < 1e-8


class Attention(nn.MultiheadAttention):
    """Compares two parameters, in code that `super()` makes a closure."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:  # type: ignore[override]
        if query is key:
            return super().forward(query, key, value, need_weights=False)[0]
        return 2 * super().forward(query, key, value, need_weights=False)[0]


class Attends(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.attention, self.b = nn.Linear(8, 16), Attention(16, 2, dropout=0.1), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        return self.b(self.attention(h, h, h) + self.attention(h, h.relu(), h))


def test_a_closure_is_asked_as_it_is_called(capture: str) -> None:
    model = randomise(Attends().eval())
    whole = fxprune.prune(model, 0.0, example_inputs=X, capture=capture)
    assert_same(whole(X[:1]), model(X[:1]), 1e-5)
    assert "query" in Attention.forward.__code__.co_varnames  # its own again


def test_what_never_meets_is_two_tensors() -> None:
    model = randomise(Net(that_never_meet).eval())
    whole = fxprune.prune(model, 0.0, example_inputs=X, capture="symbolic")
    assert_same(whole(X[:1]), model(X[:1]), 1e-6)


class Root(nn.Module):
    """Its own `forward` compares, and has names that callers use."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.o = nn.Linear(8, 16), nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, query: Tensor, key: Tensor | None = None, scale: float = 1.0) -> Tensor:
        key = query if key is None else key
        other = self.q(key) if key is query else self.k(key)
        return self.o((self.q(query) + other).relu()) * scale


def test_inputs_keep_their_names_where_forward_compares(capture: str) -> None:
    model, before = randomise(Root().eval()), Root.forward.__code__
    pruned = fxprune.prune(model, 0.5, example_inputs=X, capture=capture)
    assert Root.forward.__code__ is before and not hasattr(Root.forward, "__signature__")
    assert [n.target for n in pruned.graph.nodes if n.op == "placeholder"] == ["query", "key", "scale"]
    assert_same(pruned(query=X), fxprune.prune(model, 0.5, example_inputs=X)(X), 1e-6)
