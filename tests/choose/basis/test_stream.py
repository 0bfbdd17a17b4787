"""Rotations of a residual stream: orthogonal, ones stay ones, and a LayerNorm over the kept part is exact."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fxprune.choose.basis.stream import discarded_cost, kept_directions, rotation

torch.manual_seed(0)
N, READERS = 12, 3


def moments(rank: int = N) -> Tensor:
    x = torch.randn(READERS, 40, rank, dtype=torch.float64) @ torch.randn(rank, N, dtype=torch.float64)
    return x.mT @ x / 40


def layer_norm(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=0)


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("keep", [2, 5, 11, 12])
def test_a_rotation_is_orthogonal_and_keeps_ones(keep: int, centred: bool) -> None:
    count = keep - 1 if centred else keep
    turned = rotation(kept_directions(moments(), moments(), count, centred=centred), keep, centred=centred)
    eye = torch.eye(N, dtype=torch.float64)
    torch.testing.assert_close(turned @ turned.mT, eye)
    ones = torch.ones(N, dtype=torch.float64)
    assert not centred or torch.allclose(turned @ ones, ones)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """The same numbers whatever ran before: a descent that is far from its end is no question here."""
    torch.manual_seed(0)


@pytest.mark.parametrize("keep", [2, 5, 11, 12])
def test_a_norm_over_the_kept_part_is_exact_where_nothing_is_discarded(keep: int) -> None:
    inside = torch.randn(N, keep - 1, dtype=torch.float64)
    x = torch.randn(7, keep - 1, dtype=torch.float64) @ inside.mT
    x = x - x.mean(-1, keepdim=True)
    centred = inside - inside.mean(0)
    turned = rotation(torch.linalg.qr(centred)[0], keep, centred=True)
    torch.testing.assert_close(layer_norm(x @ turned.mT), layer_norm(x) @ turned.mT)
    kept = layer_norm((x @ turned.mT)[:, :keep]) * (N / keep) ** 0.5
    torch.testing.assert_close(kept, (layer_norm(x) @ turned.mT)[:, :keep])


@pytest.mark.parametrize("keep", [2, 5, 11])
def test_what_the_mean_of_the_kept_part_carries_is_subtracted(keep: int) -> None:
    turned = rotation(kept_directions(moments(), moments(), keep - 1, centred=True), keep, centred=True)
    discarded = turned.mT[:, keep:].sum(1)  # what differs between the means of both parts
    seen = (turned @ discarded)[:keep]
    torch.testing.assert_close(seen, seen.mean().expand(keep))


def discarded_by(kept: Tensor, centred: bool) -> Tensor:
    """What completes the directions that are kept, and the vector of ones where that is subtracted."""
    taken = torch.cat([kept, torch.ones(N, 1).double() / N**0.5], 1) if centred else kept
    return torch.linalg.qr(taken, mode="complete")[0][:, taken.shape[1] :]


@pytest.mark.parametrize("centred", [True, False])
def test_no_random_directions_cost_less(centred: bool) -> None:
    c, g = moments(), moments()
    if centred:
        away = torch.eye(N, dtype=torch.float64) - 1 / N
        c, g = away @ c @ away, away @ g @ away
    found = kept_directions(c, g, 5, centred=centred)
    gone = discarded_by(found, centred)
    least, slope = discarded_cost(gone, c, g)
    away = torch.eye(N, dtype=torch.float64) - found @ found.mT  # without what is kept, as it is defined
    assert least == pytest.approx(float(torch.einsum("ij,rjk,kl,rli->", away, c, away, g)))
    for _ in range(30):
        other = torch.randn(N, 5, dtype=torch.float64)
        for frame in (other, found + 0.05 * other):
            if centred:
                frame = frame - frame.mean(0, keepdim=True)
            assert discarded_cost(discarded_by(torch.linalg.qr(frame)[0], centred), c, g)[0] >= least * (
                1 - 1e-9
            )
    assert float(slope.norm()) < 0.1 * least


def test_the_slope_is_that_of_the_cost() -> None:
    c, g = moments(), moments()
    frame = torch.linalg.qr(torch.randn(N, 4, dtype=torch.float64))[0]
    way = torch.randn(N, 4, dtype=torch.float64)
    _, slope = discarded_cost(frame, c, g)
    step = 1e-6
    there, back = (torch.linalg.qr(frame + s * way)[0] for s in (step, -step))
    measured = (discarded_cost(there, c, g)[0] - discarded_cost(back, c, g)[0]) / (2 * step)
    along = way - frame @ (frame.mT @ way + way.mT @ frame) / 2
    assert measured == pytest.approx(float((slope * along).sum()), rel=1e-4)
