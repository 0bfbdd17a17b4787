"""What code counts as it runs: parts of a tensor, sizes of a shape.  Another count is another computation."""

from __future__ import annotations

import math
import pickle
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from helpers import randomise
from torch import Tensor, nn

import fxprune
from fxprune.errors import InputSizeError


class Coded(nn.Module):
    """Two layers, and what some code makes of them."""

    def __init__(self, code: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last, self.code = nn.Linear(6, 16), nn.Linear(16, 4), code

    def forward(self, x: Tensor) -> Tensor:
        return self.code(self, x)


def summed(m: Any, frames: Any) -> Tensor:
    out = 0
    for frame in frames:
        out = out + m.first(frame)
    return m.last(out)


def starred(m: Any, x: Tensor) -> Tensor:
    _, *_, c = x.shape
    return m.last(m.first(x)) * c


def in_turn(m: Any, x: Tensor) -> Tensor:
    count = 1
    for size in x.shape:
        count = count * size
    return m.last(m.first(x)) * count


def unpacked(m: Any, x: Tensor) -> Tensor:
    a, b = x.split(2, 1)
    return m.last(m.first(a + b))


def caught(m: Any, x: Tensor) -> Tensor:
    try:
        _, n, _ = x.shape
    except ValueError:
        x, n = x.flatten(1, 2), 1
    return m.last(m.first(x)).sum(1) * n


FLAT, DEEP = (2, 4, 6), (2, 4, 3, 6)
COUNTS: dict[str, tuple[Callable[[Any, Tensor], Tensor], tuple[int, ...], tuple[int, ...]]] = {
    "unbind": (lambda m, x: summed(m, x.unbind(1)), FLAT, (2, 6, 6)),
    "fewer": (lambda m, x: summed(m, torch.unbind(x, dim=1)), FLAT, (2, 3, 6)),
    "split": (lambda m, x: summed(m, x.split(2, 1)), FLAT, (2, 8, 6)),
    "chunk": (lambda m, x: summed(m, [c.mean(1) for c in x.chunk(2, 1)]), FLAT, (2, 1, 6)),
    "len": (lambda m, x: m.last(m.first(x)) * len(x.split(2, dim=1)), FLAT, (2, 8, 6)),
    "listed": (lambda m, x: summed(m, [*x.relu().unbind(1)]), FLAT, (2, 6, 6)),
    "unpacked": (unpacked, FLAT, (2, 6, 6)),
    "starred": (starred, FLAT, DEEP),
    "in turn": (in_turn, FLAT, DEEP),
    "product": (lambda m, x: m.last(m.first(x)) * math.prod(x.shape[1:]), FLAT, DEEP),
    "numel": (lambda m, x: m.last(m.first(x)) * x.shape.numel(), FLAT, DEEP),
    "any left": (lambda m, x: m.last(m.first(x)) * (2 if x.shape[2:] else 1), (2, 6), FLAT),
    "rest": (lambda m, x: summed(m, x.unbind(1)[2:]), FLAT, (2, 6, 6)),
    "last": (lambda m, x: m.last(m.first(x.split(2, 1)[-1][:, 0])), FLAT, (2, 8, 6)),
    "list": (lambda m, x: m.last(m.first(x)) * len([0] * x.shape[1]), FLAT, (2, 6, 6)),
    "longer list": (lambda m, x: m.last(m.first(x)) * len([0] * x.shape[1] + [1]), FLAT, (2, 6, 6)),
    "shape as a key": (lambda m, x: m.last(m.first(x)) * {FLAT[1:]: 2}.get(x[0].shape, 3), FLAT, (2, 6, 6)),
    "pairs": (lambda m, x: m.last(m.first(x)) * OrderedDict([(x.shape[1], 2)]).get(4, 3), FLAT, (2, 6, 6)),
    "numpy": (lambda m, x: m.last(m.first(x)) * np.linspace(0, 1, 5)[1] / np.float32(8), FLAT, (2, 6, 6)),
    "caught": (caught, FLAT, DEEP),
    "caught before": (caught, DEEP, FLAT),
}


@pytest.mark.parametrize("name", COUNTS)
def test_another_count_is_refused_or_right(name: str) -> None:
    code, shape, other = COUNTS[name]
    model, x, y = randomise(Coded(code).eval()), torch.randn(shape), torch.randn(other)
    whole = fxprune.prune(model, 0.0, example_inputs=x, capture="symbolic")
    torch.testing.assert_close(pickle.loads(pickle.dumps(whole))(x), model(x))
    assert fxprune.verify(model, fxprune.prune(model, 0.5, example_inputs=x)).exact
    try:
        found = whole(y)
    except InputSizeError as refused:
        assert "test_counts.py" in str(refused)
    else:
        torch.testing.assert_close(found, model(y))


def parts_of_weights(m: Any, x: Tensor) -> Tensor:
    a, b = m.first(x).chunk(2, -1)
    c, d = m.first(x).unflatten(-1, (2, 8)).permute(2, 0, 1, 3).unbind(0)
    e, f = m.first(x).relu().reshape(x.shape[0], -1, 2, 8).unbind(2)
    return m.last(torch.cat([a * b + c, d + e * f], -1))


def test_a_count_that_weights_fix_needs_no_guard() -> None:
    model = randomise(Coded(parts_of_weights).eval())
    pruned = fxprune.prune(model, 0.5, example_inputs=torch.randn(FLAT), capture="symbolic")
    assert "guard" not in pruned.code
    assert fxprune.verify(model, pruned).exact


@pytest.mark.parametrize(("rows", "refused"), [(6, False), (7, False), (8, True)])
def test_a_remainder_may_be_another_but_zero(rows: int, refused: bool, capture: str) -> None:
    def padded(m: Any, x: Tensor) -> Tensor:
        if x.shape[1] % 4:
            x = nn.functional.pad(x, (0, 0, 0, 4 - x.shape[1] % 4))
        return m.last(m.first(x))

    model = randomise(Coded(padded).eval())
    whole = fxprune.prune(model, 0.0, example_inputs=torch.randn(2, 5, 6), capture=capture)
    x = torch.randn(2, rows, 6)
    if refused:
        with pytest.raises(InputSizeError):
            whole(x)
    else:
        torch.testing.assert_close(whole(x), model(x))


# ---------------------------------------------------------------- the root's own way to be called


def test_the_forward_of_the_instance_is_the_one_that_is_traced(capture: str) -> None:
    model: Any = randomise(Coded(lambda m, x: m.last(m.first(x))).eval())
    model.forward = lambda x: model.first(x).relu() @ model.last.weight.T
    x = torch.randn(FLAT)
    whole = fxprune.prune(model, 0.0, example_inputs=x, capture=capture)
    torch.testing.assert_close(whole(x), model(x))


def test_a_call_of_its_own_is_part_of_the_model() -> None:
    class Doubled(Coded):
        def __call__(self, x: Tensor) -> Tensor:
            return 2 * super().__call__(x)

    model, x = randomise(Doubled(lambda m, x: m.last(m.first(x))).eval()), torch.randn(FLAT)
    torch.testing.assert_close(fxprune.prune(model, 0.0, example_inputs=x)(x), model(x))


# ---------------------------------------------------------------- draws, constants, dtypes


DRAWS: dict[str, Callable[[], Tensor]] = {
    "bernoulli": lambda: torch.bernoulli(torch.full((16,), 0.5)),
    "uniform_": lambda: torch.empty(16).uniform_(),
    "init": lambda: nn.init.normal_(torch.empty(16)),
    "randn_like": lambda: torch.randn_like(torch.zeros(16)),
}


@pytest.mark.parametrize("draw", DRAWS)
def test_what_code_draws_into_a_tensor_of_its_own_is_drawn_at_each_call(draw: str) -> None:
    model = Coded(lambda m, x: m.last(m.first(x) * DRAWS[draw]())).eval()
    x = torch.randn(FLAT)
    whole = fxprune.prune(model, 0.0, example_inputs=x)
    assert not torch.equal(whole(x), whole(x))


def test_a_constant_that_is_written_to_between_its_uses(capture: str) -> None:
    def counted(m: Any, x: Tensor) -> Tensor:
        t, h = torch.zeros(16), m.first(x)
        y = h + t
        t += 1
        return m.last(y * (h + t))

    model, x = randomise(Coded(counted).eval()), torch.randn(FLAT)
    try:
        whole = fxprune.prune(model, 0.0, example_inputs=x, capture=capture)
    except fxprune.errors.CaptureError as refused:
        assert capture == "symbolic"
        assert "written to after it was used" in str(refused)
    else:
        torch.testing.assert_close(whole(x), model(x))


@pytest.mark.parametrize("method", [False, True])
def test_a_write_keeps_the_dtype_of_what_it_writes_to(method: bool, capture: str) -> None:
    def mixed(m: Any, x: Tensor) -> Tensor:
        y, h = m.first(x).bfloat16(), m.first(x)
        if method:
            y.add_(h)
        else:
            y += h
        return m.last(y.float())

    model, x = randomise(Coded(mixed).eval()), torch.randn(FLAT)
    torch.testing.assert_close(fxprune.prune(model, 0.0, example_inputs=x, capture=capture)(x), model(x))


def test_a_constant_of_an_export_keeps_its_name_in_the_next() -> None:
    """In another precision, say: its code is the same."""

    def scaled(m: Any, x: Tensor) -> Tensor:
        return m.last(m.first(x)) * torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=x.dtype)

    model, x = randomise(Coded(scaled).eval()), torch.randn(FLAT)
    whole = fxprune.prune(model, 0.0, example_inputs=x, capture="export").double()
    torch.testing.assert_close(whole(x.double()), model.double()(x.double()))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_a_weighted_loss_keeps_its_weight(reduction: str) -> None:
    """torch.nn.functional hands it to nobody who takes the function over: by torch.export it is refused."""

    def loss(m: Any, x: Tensor) -> Tensor:
        y = m.first(x)
        return nn.functional.l1_loss(m.last(y), y[..., :4], weight=y[..., 4:8].square(), reduction=reduction)

    model, x = randomise(Coded(loss).eval()), torch.randn(FLAT)
    torch.testing.assert_close(fxprune.trace(model, example_inputs=x)(x), model(x))
