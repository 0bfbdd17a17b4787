"""A tensor is changed along one factor of a dimension as a loop over its elements says."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from fxprune.analysis.freedom.regions import Place
from fxprune.passes.rebasing.along import changed, scaled, taken
from fxprune.rules.axes import Atom, Axis, Product, Sum

A, B, C = Atom(3), Atom(2), Atom(4)
FIRST, MIDDLE, LAST = Product.of([B, A]), Product.of([C, B]), Product.of([A, B])
JOINED = Sum.of([FIRST, MIDDLE, LAST])
# Of each position along `JOINED`: the run of `A` that it is in, and its index of `A` and of `B`.
LABELS: list[tuple[int | None, int, int]] = [
    *((0, j, i) for i in range(2) for j in range(3)),
    *((None, -1, i) for _ in range(4) for i in range(2)),
    *((1, j, i) for j in range(3) for i in range(2)),
]
BESIDE: Axis = Product.of([C, B])  # B's index of position j along it is j % 2


def tensor() -> Tensor:
    return torch.randn(JOINED.size, BESIDE.size, generator=torch.Generator().manual_seed(0)).double()


@pytest.mark.parametrize("side", [1, -1])
@pytest.mark.parametrize("part", [None, 0, 1])
@pytest.mark.parametrize("run", [0, 1])
def test_scaled(run: int, part: int | None, side: int) -> None:
    x, vector = tensor(), torch.tensor([2.0, 3.0, 5.0]).double()
    wanted = x.clone()
    for (p, (r, j, i)), q in itertools.product(enumerate(LABELS), range(BESIDE.size)):
        if r == run and (part is None or i == q % 2 == part):
            wanted[p, q] *= vector[j] ** side
    place = Place("", 0, () if part is None else ((B, part),), run, side)
    torch.testing.assert_close(scaled(x, (JOINED, BESIDE), place, A, vector), wanted, rtol=1e-12, atol=0)


@pytest.mark.parametrize("run", [0, 1])
def test_scaled_by_an_element_for_each_position(run: int) -> None:
    x, vector = tensor(), torch.arange(2.0, 8.0).double()
    wanted = x.clone()
    wanted[[p for p, (r, _, _) in enumerate(LABELS) if r == run]] *= vector[:, None]
    assert torch.equal(scaled(x, (JOINED, BESIDE), Place("", 0, (), run), A, vector), wanted)


@pytest.mark.parametrize("run", [0, 1])
def test_taken(run: int) -> None:
    x = tensor()[:, :1]
    at = [p for p, (r, _, _) in enumerate(LABELS) if r == run]
    elements, rest = taken(x, (JOINED, Product.of([])), Place("", 0, (), run), A)
    assert torch.equal(elements, x[at, 0])
    wanted = x.clone()
    wanted[at] = 1
    assert torch.equal(rest, wanted)
    assert rest.shape == x.shape


@pytest.mark.parametrize("side", [1, -1])
@pytest.mark.parametrize("heads", [False, True])
@pytest.mark.parametrize("run", [0, 1])
def test_changed(run: int, heads: bool, side: int) -> None:
    """By one matrix, or by one for each index of B, which lies in the same dimension."""
    x = torch.randn(JOINED.size, 4, generator=torch.Generator().manual_seed(1)).double()
    matrix = torch.randn(2, 3, 3, generator=torch.Generator().manual_seed(2)).double()
    wanted = x.clone()
    for i in range(2):
        own = matrix[i] if heads else matrix[0]
        own = own if side > 0 else torch.linalg.inv(own).T
        at = [LABELS.index((run, j, i)) for j in range(3)]
        wanted[at] = own @ x[at]
    got = changed(
        x, (JOINED, C), Place("", 0, (), run, side), A, matrix if heads else matrix[0], B if heads else None
    )
    torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("part", [None, 1])
def test_changed_where_another_dimension_has_the_heads(part: int | None) -> None:
    """The elements of another dimension that belong to a head, and to a part, are changed by its matrix."""
    parts = Atom(2)
    axes = (A, Product.of([parts, B, C]))
    x = torch.randn(3, 16, generator=torch.Generator().manual_seed(3)).double()
    matrix = torch.randn(2, 3, 3, generator=torch.Generator().manual_seed(4)).double()
    wanted = x.clone()
    for p, i, k in itertools.product(range(2), range(2), range(4)):
        if part is None or p == part:
            q = (p * 2 + i) * 4 + k
            wanted[:, q] = matrix[i] @ x[:, q]
    place = Place("", 0, () if part is None else ((parts, part),))
    torch.testing.assert_close(changed(x, axes, place, A, matrix, B), wanted, rtol=1e-10, atol=1e-12)
