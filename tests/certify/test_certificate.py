"""The certificate itself: what it says, what it refuses, and that chance has no part in it."""

from __future__ import annotations

import itertools

import pytest
import torch
from helpers import mlp, randomise, small_vit
from torch import Tensor, nn

import fxprune
from fxprune.certify.certificate import Certificate
from fxprune.certify.relative_error import compare
from fxprune.errors import CertificateError

VECTORS = torch.randn(3, 6)


@pytest.mark.parametrize(
    ("error", "text"),
    [(2e-16, "Certificate(2.00e-16, exact)"), (0.5, "Certificate(5.00e-01, NOT EXACT)")],
)
def test_it_says_whether_it_is_exact(error: float, text: str) -> None:
    assert repr(Certificate(error)) == text
    assert Certificate(error).exact == ("NOT" not in text)


CALLS = itertools.count(1)


class Counting(nn.Module):
    """Every call computes something else: no capture is right."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mlp()

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) * next(CALLS)


def test_a_capture_that_computes_something_else_is_refused(capture: str) -> None:
    model = Counting()
    pruned = fxprune.prune(model, 0.5, example_inputs=VECTORS, capture=capture)
    with pytest.raises(CertificateError, match=f"{capture} capture computes something else than the model"):
        fxprune.verify(model, pruned)


class Noisy(nn.Module):
    """It draws numbers in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mlp()

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x + torch.randn_like(x))


def test_chance_has_no_part_in_it(capture: str) -> None:
    model = randomise(Noisy())
    pruned = fxprune.prune(model, 0.5, example_inputs=VECTORS, capture=capture)
    found = set()
    for seed in range(4):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        found.add(float(fxprune.verify(model, pruned, example_inputs=VECTORS)))
        assert torch.equal(torch.get_rng_state(), before)
    assert len(found) == 1
    assert found.pop() < 1e-8


class Making(nn.Module):
    """Its code makes a tensor on the way, in the default dtype."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.body = nn.Linear(4, 6), mlp()

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x + self.table(torch.linspace(0, 1, 4)))


def test_what_the_code_makes_is_double_too(capture: str) -> None:
    model = randomise(Making())
    pruned = fxprune.prune(model, 0.5, example_inputs=VECTORS, capture=capture)
    assert fxprune.verify(model, pruned) < 1e-8
    assert torch.get_default_dtype() is torch.float32


class Phases(nn.Module):
    """It returns complex numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mlp()

    def forward(self, x: Tensor) -> Tensor:
        return torch.view_as_complex(self.body(x).unflatten(-1, (-1, 2)))


def test_complex_results_are_compared(capture: str) -> None:
    model = randomise(Phases())
    pruned = fxprune.prune(model, 0.5, example_inputs=VECTORS, capture=capture)
    assert fxprune.verify(model, pruned).exact
    with torch.no_grad():
        next(pruned.parameters()).mul_(2)
    assert not fxprune.verify(model, pruned).exact


@pytest.mark.parametrize("form", ["graph", "module"])
def test_models_on_two_devices_are_refused(form: str) -> None:
    model = small_vit(depth=1)
    pruned = fxprune.prune(model, 0.5, form=form)
    with pytest.raises(CertificateError, match="the model is on cpu and the pruned one on meta: bring both"):
        fxprune.verify(model, pruned.to("meta"))


class Filled(nn.Module):
    """Scores of which a half is filled with the least number."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mlp()

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x).masked_fill(torch.tensor([True, False, True, False]), torch.finfo(x.dtype).min)


def test_what_depends_on_the_input_is_seen_beside_what_fills_places() -> None:
    model = randomise(Filled())
    assert fxprune.verify(model, fxprune.prune(model, 0.5, example_inputs=VECTORS)).exact


@pytest.mark.parametrize(
    "value", [-1e4, -1e9, torch.finfo(torch.float32).min, torch.finfo(torch.float64).max]
)
def test_what_fills_masked_places_is_no_measure_of_the_rest(value: float) -> None:
    wanted = torch.randn(3, 4, dtype=torch.float64)
    wanted[:, ::2] = value
    found = compare([wanted], [wanted + 1e-3 * (wanted != value)]).error
    assert 1e-4 < found < 1


def test_the_smallest_of_large_numbers_are_of_their_order() -> None:
    wanted = 1e9 * torch.randn(1000, dtype=torch.float64)
    wanted[:2] = torch.tensor([1e-9, -2.0])
    assert compare([wanted], [wanted + 1e-7]).error < 1e-15
