"""Captures print nothing of libraries: no warning, log or graph."""

from __future__ import annotations

import io
import logging
import threading
import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxprune
from fxprune.errors import CaptureError
from fxprune.graph.quiet import quiet_libraries

X = torch.randn(2, 3, 16, 16)


class Deprecated(nn.Module):
    """Calls that torch warns of, each time."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.out, self.softmax = nn.Conv2d(3, 16, 3), nn.Linear(16, 4), nn.Softmax()

    def forward(self, x: Tensor) -> Tensor:
        warnings.warn("the model's own word", UserWarning, stacklevel=2)
        return self.softmax(self.out(F.upsample(self.conv(x), scale_factor=2, mode="bilinear").mean((2, 3))))


class Meshgrid(Deprecated):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        rows, columns = torch.meshgrid(torch.arange(y.shape[2]), torch.arange(y.shape[3]))
        return self.out((y * (rows + columns)).mean((2, 3)))


@pytest.mark.parametrize("make", [Deprecated, Meshgrid])
def test_no_warning_of_a_library(
    make: Callable[[], nn.Module], capture: str, capfd: pytest.CaptureFixture[str]
) -> None:
    model = make().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fxprune.trace(model, X, capture=capture)
    assert capfd.readouterr() == ("", "")


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).relu() if x.sum() > 0 else self.a(x))


def test_an_error_comes_without_the_graph_so_far(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(CaptureError):
        fxprune.prune(Branching(), example_inputs=torch.zeros(2, 8))
    assert capfd.readouterr() == ("", "")


INSTALLED, OWN = "/usr/lib/python3/site-packages/library/file.py", "/home/someone/model.py"


@pytest.mark.parametrize(
    ("level", "path", "printed"),
    [(logging.WARNING, INSTALLED, False), (logging.ERROR, INSTALLED, True), (logging.WARNING, OWN, True)],
)
def test_advice_of_an_installed_library(level: int, path: str, printed: bool) -> None:
    """By a logger with a handler of its own, as libraries have that print by themselves."""
    logger, paper = logging.getLogger("a_library_that_prints"), io.StringIO()
    handler = logging.StreamHandler(paper)
    logger.addHandler(handler)

    def lines_said() -> int:
        logger.handle(logging.LogRecord(logger.name, level, path, 1, "advice", None, None))
        return paper.getvalue().count("advice")

    with quiet_libraries(), quiet_libraries():
        assert lines_said() == printed
    assert lines_said() == printed + 1  # afterwards it speaks as before
    logger.removeHandler(handler)


def test_filters_are_put_back_in_every_thread() -> None:
    before = list(warnings.filters)

    def inside() -> None:
        for _ in range(50):
            with quiet_libraries():
                warnings.warn("nothing", stacklevel=1)

    threads = [threading.Thread(target=inside) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(warnings.filters) == before
