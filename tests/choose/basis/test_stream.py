"""Rotations of a residual stream: orthogonal, ones stay ones, and a LayerNorm over the kept part is exact."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fxprune.choose.basis.discarded import RIDGE, Readers
from fxprune.choose.basis.stream import kept_directions, rotation

torch.manual_seed(0)
N, READERS = 12, 3


def readers(*solved: bool) -> Readers:
    x, g = (torch.randn(READERS, 40, N, dtype=torch.float64) for _ in range(2))
    x = x @ torch.randn(N, N, dtype=torch.float64) + torch.randn(N, dtype=torch.float64)
    return Readers(x.mT @ x / 40, g.mT @ g / 40, x.mean(1), torch.tensor(solved or READERS * (False,)))


def layer_norm(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=0)


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("keep", [2, 5, 11, 12])
def test_a_rotation_is_orthogonal_and_keeps_ones(keep: int, centred: bool) -> None:
    count = keep - 1 if centred else keep
    turned = rotation(kept_directions(readers(), count, centred=centred), keep, centred=centred)
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
    turned = rotation(kept_directions(readers(), keep - 1, centred=True), keep, centred=True)
    discarded = turned.mT[:, keep:].sum(1)  # what differs between the means of both parts
    seen = (turned @ discarded)[:keep]
    torch.testing.assert_close(seen, seen.mean().expand(keep))


def discarded_by(kept: Tensor, centred: bool) -> Tensor:
    """What completes the directions that are kept, and the vector of ones where that is subtracted."""
    taken = torch.cat([kept, torch.ones(N, 1).double() / N**0.5], 1) if centred else kept
    return torch.linalg.qr(taken, mode="complete")[0][:, taken.shape[1] :]


SOLVED = pytest.mark.parametrize("solved", [(False,) * READERS, (True, False, True)], ids=["none", "some"])


@SOLVED
@pytest.mark.parametrize("centred", [True, False])
def test_no_random_directions_cost_less(centred: bool, solved: tuple[bool, ...]) -> None:
    asked = readers(*solved)
    found = kept_directions(asked, 5, centred=centred)
    cost = (asked.without_ones() if centred else asked).cost()
    least, slope = cost(discarded_by(found, centred))
    for _ in range(30):
        other = torch.randn(N, 5, dtype=torch.float64)
        for frame in (other, found + 0.05 * other):
            if centred:
                frame = frame - frame.mean(0, keepdim=True)
            assert cost(discarded_by(torch.linalg.qr(frame)[0], centred))[0] >= least * (1 - 1e-9)
    assert float(slope.norm()) < 0.1 * least


def test_the_cost_is_what_is_lost_of_what_readers_read() -> None:
    asked = readers(False, True, False)
    frame = torch.linalg.qr(torch.randn(N, N, dtype=torch.float64))[0]
    kept, gone = frame[:, :8], frame[:, 8:]
    lost = []
    for c, g, mean, solved in zip(asked.vectors, asked.covectors, asked.means, asked.solved, strict=True):
        if solved:  # ridge regression of what is discarded on what is kept, about the means
            c = c - torch.outer(mean, mean)
            ridge = RIDGE * c.diagonal().mean() * torch.eye(8, dtype=torch.float64)
            crossed = kept.mT @ c @ gone
            left = gone.mT @ c @ gone - crossed.mT @ torch.linalg.inv(kept.mT @ c @ kept + ridge) @ crossed
        else:
            left = gone.mT @ c @ gone
        lost.append((left * (gone.mT @ g @ gone)).sum())
    assert asked.cost()(gone)[0] == pytest.approx(float(sum(lost)))


@SOLVED
def test_the_slope_is_that_of_the_cost(solved: tuple[bool, ...]) -> None:
    cost = readers(*solved).cost()
    frame = torch.linalg.qr(torch.randn(N, 4, dtype=torch.float64))[0]
    way = torch.randn(N, 4, dtype=torch.float64)
    _, slope = cost(frame)
    step = 1e-6
    there, back = (torch.linalg.qr(frame + s * way)[0] for s in (step, -step))
    measured = (cost(there)[0] - cost(back)[0]) / (2 * step)
    along = way - frame @ (frame.mT @ way + way.mT @ frame) / 2
    assert measured == pytest.approx(float((slope * along).sum()), rel=1e-4)


def test_a_reader_of_what_is_the_same_everywhere_loses_nothing() -> None:
    """Its moments, summed in float32, differ by rounding from its means' (a class token before any block)."""
    asked = readers(True, False, False)
    same = torch.randn(N, dtype=torch.float64)
    for seed in range(8):
        noise = torch.randn(N, N, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        asked.vectors[0] = torch.outer(same, same) + 3e-7 * (noise + noise.mT)
        asked.means[0] = same
        frame = torch.linalg.qr(torch.randn(N, 4, dtype=torch.float64))[0]
        lost = asked.cost()(frame)[0]
        asked.covectors[0] *= 2
        assert asked.cost()(frame)[0] == pytest.approx(lost, rel=1e-4)
