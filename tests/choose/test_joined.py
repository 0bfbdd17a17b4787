"""Few calibration images are joined to more: halves beside halves, of none that is held out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.choose.importance.data import Batch
from fxprune.choose.importance.held_out import split_data
from fxprune.choose.importance.joined import ENOUGH, MOST, joined


def batches(count: int, size: int, *shape: int, dtype: torch.dtype = torch.float32) -> list[Batch]:
    """Every sample is filled with its number."""
    found = []
    for first in range(0, count * size, size):
        numbers = tuple(range(first, first + size))
        values = torch.tensor(numbers).reshape(size, *[1] * len(shape)).expand(size, *shape)
        found.append(Batch([values.to(dtype), None, True], size, torch.zeros(size), numbers))
    return found


def images(batch: Batch) -> Tensor:
    (tensor,) = (v for v in batch.args if isinstance(v, Tensor))
    return tensor


@pytest.mark.parametrize("size", [4, 1, 5])
@pytest.mark.parametrize("shape", [(3, 6, 7), (3, 7, 6), (2, 3, 4, 7)])
def test_each_is_half_of_one_and_half_of_another(size: int, shape: tuple[int, ...]) -> None:
    given = batches(3, size, *shape)
    found = joined(given, 3 * size)
    assert found
    dim = 1 + shape.index(7)
    pairs = set()
    for batch in found:
        assert images(batch).shape == images(given[0]).shape
        assert batch.args[1:] == [None, True]
        left, right = images(batch).split([3, 4], dim)
        for half in (left, right):
            assert bool((half == half.flatten(1)[:, :1].reshape(-1, *[1] * len(shape))).all())
        pairs |= set(zip(left.flatten(1)[:, 0].tolist(), right.flatten(1)[:, 0].tolist(), strict=True))
    assert all(a != b for a, b in pairs)
    assert len(pairs) == sum(batch.size for batch in found)  # none is made twice
    numbers = [n for batch in found for n in batch.numbers]
    assert numbers == list(range(3 * size, 3 * size + len(numbers)))


@pytest.mark.parametrize(
    ("samples", "times"), [(ENOUGH, 0), (ENOUGH - 6, 0), (ENOUGH // 2, 1), (ENOUGH // 4, MOST), (8, MOST)]
)
def test_there_are_enough_of_them(samples: int, times: int) -> None:
    found = joined(batches(samples // 2, 2, 1, 2, 2), samples)
    assert sum(batch.size for batch in found) == times * samples


@pytest.mark.parametrize(
    "given",
    [
        batches(4, 2, 9),
        batches(4, 2, 5, 9),
        batches(4, 2, 3, 6, 6, dtype=torch.int64),
        [*batches(2, 2, 3, 6, 6), *batches(2, 2, 3, 8, 8)],
        [Batch([torch.zeros(2, 3, 4, 4), torch.zeros(2, 4)], 2, None, (0, 1))],
        [Batch([torch.zeros(1, 3, 4, 4)], 1, None, (0,))],
        [],
    ],
)
def test_none_is_made_of_what_is_no_set_of_images(given: list[Any]) -> None:
    assert joined(given, 8) == []


def test_none_is_made_of_what_is_held_out() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 2), nn.Flatten(), nn.Linear(36, 2))
    analysis = fxprune.analyze(model, example_inputs=torch.zeros(2, 1, 4, 4))
    data = [images(batch) for batch in batches(4, 5, 1, 4, 4)]
    found = split_data(data, analysis, "kl")
    held = {n for batch in found.held for n in batch.numbers}
    assert held and found.joined
    assert held.isdisjoint(int(v) for batch in found.joined for v in images(batch).flatten().tolist())
    numbers = [n for batch in found.all for n in batch.numbers]
    assert len(numbers) == len(set(numbers))
    assert not split_data(data, analysis, "kl", join=False).joined
