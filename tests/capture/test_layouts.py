"""How tensors lie in memory: code that asks, and writes that reach further for some of them, are guarded."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from helpers import assert_same, by_capture, randomise, run
from torch import Tensor, nn

import fxprune
from fxprune.errors import FxpruneError

Change = Callable[[Tensor], Tensor]
X = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
OTHERWISE = X.mT.contiguous().mT


class Net(nn.Module):
    def __init__(self, change: Change) -> None:
        super().__init__()
        self.change, self.a, self.b = change, nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(self.change(x)).relu())


def asked_of_an_input(x: Tensor) -> Tensor:
    return x if x.is_contiguous() else 2 * x


def asked_of_what_lies_as_an_input(x: Tensor) -> Tensor:
    y = x + 1
    return y if y.is_contiguous() else 2 * y


def asked_for_a_stride(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else 2 * x


def written_through_contiguous(x: Tensor) -> Tensor:
    y = x.contiguous()
    y *= 2
    return x + y


def written_through_reshape(x: Tensor) -> Tensor:
    y = x.reshape(x.shape[0], -1)
    y += 1
    return x


def written_through_a_copy_of_a_view(x: Tensor) -> Tensor:
    t = x.mT * 1
    y = t.contiguous()
    y += 1
    return (t + y).mT


CHANGES = [
    *(asked_of_what_lies_as_an_input, asked_of_an_input, asked_for_a_stride, written_through_contiguous),
    *(written_through_reshape, written_through_a_copy_of_a_view),
]
FIRST_BY_SYMBOLS = by_capture(CHANGES[:3], every=1)


@pytest.mark.parametrize(("change", "capture"), [*FIRST_BY_SYMBOLS, *((c, "export") for c in CHANGES[3:])])
def test_an_input_that_lies_otherwise_is_refused(change: Change, capture: str) -> None:
    model = randomise(Net(change).eval())
    whole, pruned = (fxprune.prune(model, r, example_inputs=X, capture=capture) for r in (0.0, 0.5))
    for x in (X, X[:1].clone(), torch.randn(3, 5, 8)):
        assert_same(run(whole, x.clone()), run(model, x.clone()), 1e-6)
    assert pruned.get_submodule("a").weight.shape == (8, 8)
    assert not torch.allclose(run(model, OTHERWISE.clone()), run(model, OTHERWISE.contiguous()))
    for module in (whole, pruned):
        with pytest.raises(FxpruneError, match=r"test_layouts.py:\d+"):
            module(OTHERWISE.clone())


@pytest.mark.parametrize("change", [asked_of_what_lies_as_an_input, written_through_contiguous])
def test_an_example_is_taken_as_contiguous(change: Change) -> None:
    model = randomise(Net(change).eval())
    whole = fxprune.prune(model, 0.0, example_inputs=OTHERWISE)
    assert_same(run(whole, X.clone()), run(model, X.clone()), 1e-6)
    with pytest.raises(FxpruneError, match=r"give x\.contiguous\(\), or prune with form='module'"):
        whole(OTHERWISE)


def written_and_not_seen(x: Tensor) -> Tensor:
    y = (x * 2).contiguous()
    return y.clamp_(0) + 1


def test_what_does_not_depend_on_it_takes_any_input(capture: str) -> None:
    model = randomise(Net(written_and_not_seen).eval())
    whole = fxprune.prune(model, 0.0, example_inputs=X, capture=capture)
    assert_same(run(whole, OTHERWISE), run(model, OTHERWISE), 1e-6)
