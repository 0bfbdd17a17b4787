"""Captures print nothing of libraries: no warning, log or graph."""

from __future__ import annotations

import contextlib
import io
import logging
import threading
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

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


class Reshaped(nn.Module):
    """Python's own arithmetic makes a number of sizes that no graph of symbolic tracing can compute with."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.mlp = nn.Conv2d(3, 16, 3), nn.Sequential(nn.Linear(196, 32), nn.Linear(32, 4))

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.mlp(y.reshape(len(y), -1, int(np.prod(y.shape[2:]))))


class Suppressed(Deprecated):
    """Its code goes on where an operation fails, which a graph does not: export takes it."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        with contextlib.suppress(TypeError):
            y = y * None
        return self.out(y.mean((2, 3)))


class TakesOneSize(nn.Module):
    """A graph of a user's: in other sizes its own generated code fails."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.mlp = nn.Conv2d(3, 16, 3), nn.Sequential(nn.Linear(196, 32), nn.Linear(32, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(self.conv(x).reshape(-1, 16, 196))


def traced() -> nn.Module:
    return nn.Sequential(fx.symbolic_trace(TakesOneSize()))


@pytest.mark.parametrize("make", [Reshaped, Suppressed, TakesOneSize, traced])
def test_graphs_that_are_tried_print_nothing(
    make: Callable[[], nn.Module], capfd: pytest.CaptureFixture[str]
) -> None:
    model = make().double().eval()
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    pruned = fxprune.prune(model, 0.5, example_inputs=x)
    assert fxprune.verify(model, pruned) < 1e-9
    assert pruned(x[:1]).shape == model(x[:1]).shape
    assert capfd.readouterr() == ("", "")


def test_a_graph_of_a_user_speaks_afterwards(capfd: pytest.CaptureFixture[str]) -> None:
    graph = fx.symbolic_trace(TakesOneSize())
    with pytest.raises(fxprune.FxpruneError):
        fxprune.prune(graph, 0.5, example_inputs=torch.zeros(2, 3, 9, 9))
    assert capfd.readouterr() == ("", "")
    with pytest.raises(RuntimeError):
        graph(torch.zeros(2, 3, 9, 9))
    assert "FX-traced Module" in capfd.readouterr().err


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
