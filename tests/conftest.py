"""Fixtures that several folders of tests share.  What takes arguments is a function in `helpers.py`."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
from helpers import CAPTURES, images, small_vit
from representatives import others
from torch import fx, nn

import fxprune
from fxprune.choose.importance import predictions


@pytest.hookimpl(tryfirst=True)  # before slow ones are left out
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark slow what others stand for."""
    quick = {item.nodeid: item for item in items if item.get_closest_marker("slow") is None}
    for test in others([*quick]):
        quick[test].add_marker(pytest.mark.slow)


def pytest_collection_finish() -> None:
    """Leave half a million objects out of searches for garbage, and search less often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)  # a tenth of all time otherwise


@pytest.fixture(scope="session", autouse=True)
def few_derivatives() -> Iterator[None]:
    """Take a twelfth of the derivatives: tests ask what is exact, and a backward pass each is their time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(predictions, "DERIVATIVES", 64)
        yield


@pytest.fixture(params=CAPTURES)
def capture(request: pytest.FixtureRequest) -> str:
    """Each of the two captures in turn: a test that takes it runs once by each."""
    return request.param


# Made once for all tests of a process.  None of them may change these: copy before you do.


@pytest.fixture(scope="session")
def vit() -> nn.Module:
    """A small ViT on 32 x 32 images."""
    return small_vit()


@pytest.fixture(scope="session")
def vit_analysis(vit: nn.Module) -> fxprune.Analysis:
    return fxprune.analyze(vit, example_inputs=images())


@pytest.fixture(scope="session")
def vit_half(vit: nn.Module) -> fx.GraphModule:
    """The small ViT pruned by half."""
    return fxprune.prune(vit, 0.5, example_inputs=images())
