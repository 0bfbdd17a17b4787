"""Passes over the data: as much in each as can be held, in order."""

from __future__ import annotations

import pytest

from fxprune.choose.importance.waves import in_waves


@pytest.mark.parametrize(
    ("sizes", "waves"),
    [
        ([], []),
        ([2, 3], [[2, 3]]),
        ([2, 3, 1], [[2, 3], [1]]),
        ([9, 1, 4, 9], [[9], [1, 4], [9]]),  # one that is too large is a pass alone
    ],
)
def test_as_much_as_can_be_held(sizes: list[int], waves: list[list[int]]) -> None:
    assert in_waves(sizes, lambda size: size, 5) == waves
