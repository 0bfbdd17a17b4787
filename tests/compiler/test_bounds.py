"""form="module": bounds and counts as large as a width are none; what source does not tell is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.certify.zoo import randomise
from fxprune.errors import UnsupportedModuleError
from fxprune.result.pruned_module import record_of

Bound = Callable[["Limited", Tensor], Tensor]


def branches(model: Limited, x: Tensor) -> Tensor:
    return x[:, : model.limit] if not model.training and x.shape[1] > model.limit else x


def cuts(model: Limited, x: Tensor) -> Tensor:
    return x[:, : model.limit]


def takes_the_least(model: Limited, x: Tensor) -> Tensor:
    return x[:, : min(x.shape[1], model.limit)]


class Mixes(nn.Module):
    """Is told its width, and how many tokens there may be."""

    def __init__(self, most: int, width: int) -> None:
        super().__init__()
        self.most, self.width = most, width
        self.places, self.fc = nn.Embedding(most, width), nn.Linear(width, 2 * width)
        self.back = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.back(self.fc(x + self.places.weight[: x.shape[1]]).relu())

    def places_of(self, n: int) -> Tensor:
        return torch.arange(self.most)[:n]


class Limited(nn.Module):
    """Has bounds, and a number that no layer is built of, as large as its width."""

    def __init__(self, width: int, bound: Bound, limit: int, divisor: int) -> None:
        super().__init__()
        self.width = self.features = width
        self.bound, self.limit, self.best, self.latest, self.divisor = bound, limit, width, limit, divisor
        self.info = [{"channels": width, "stride": 2}]
        self.patch, self.mix = nn.Conv2d(3, width, 2, 2), Mixes(most=width, width=width)
        self.head = nn.Linear(self.features, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bound(self, self.patch(x).flatten(2).transpose(1, 2))
        return self.head(self.mix(x).mean(1))

    def brightest(self, x: Tensor) -> Tensor:
        return x.flatten(1).topk(self.best, 1).indices

    def last_of(self, x: Tensor) -> Tensor:
        return x[:, -self.latest :]

    def divided(self, x: Tensor) -> Tensor:
        return x / self.divisor

    def both(self, x: Tensor) -> Tensor:
        return self.last_of(self.divided(x))

    def renewed(self) -> nn.Module:
        return nn.Linear(self.features, 5)


def prunes(width: int, bound: Bound, **options: str) -> tuple[Limited, nn.Module]:
    torch.manual_seed(width)
    model = randomise(Limited(width, bound, width, width).double().eval())
    x = torch.randn(1, 3, 8, 8).double()
    return model, fxprune.prune(model, 0.5, example_inputs=x, form="module", **options)


@pytest.mark.parametrize("width", [48, 72, 128])
@pytest.mark.parametrize("bound", [branches, cuts, takes_the_least])
def test_a_bound_on_tokens_stays(width: int, bound: Bound, capture: str) -> None:
    model, pruned = prunes(width, bound, capture=capture)
    own = record_of(pruned).own
    assert own.is_whole and pruned.limit == width and pruned.width == width // 2, own.replaced
    graph = fxprune.prune(model, 0.5, example_inputs=torch.ones(1, 3, 8, 8).double(), capture=capture)
    side = 2 * int((width - 1) ** 0.5)
    for size in (8, side):  # of fewer tokens than the new width, and of more
        x = torch.randn(3, 3, size, size).double()
        torch.testing.assert_close(pruned(x), graph(x))


@pytest.mark.parametrize("width", [96, 160])
def test_widths_are_told_from_counts_by_source(width: int) -> None:
    model, pruned = prunes(width, cuts)
    half = width // 2
    assert (pruned.width, pruned.features, pruned.mix.width) == (half,) * 3
    assert pruned.info == [{"channels": half, "stride": 2}]
    assert pruned.renewed().in_features == half
    x = torch.randn(2, 3, 16, 16).double()
    assert torch.equal(pruned.brightest(x), model.brightest(x))
    assert torch.equal(pruned.last_of(x[0]), model.last_of(x[0]))
    assert torch.equal(pruned.mix.places_of(width), model.mix.places_of(width))


@pytest.mark.parametrize("width", [48, 96])
def test_methods_that_read_what_source_does_not_tell_are_refused(width: int, tmp_path: Path) -> None:
    model, pruned = prunes(width, cuts)
    fxprune.save(pruned, tmp_path, build="mine:make")
    x = torch.randn(2, 3, 8, 8).double()
    for same in (pruned, copy.deepcopy(pruned), fxprune.load(tmp_path, model=model)):
        torch.testing.assert_close(same(x), pruned(x))
        for refused in (same.divided, same.both):
            with pytest.raises(UnsupportedModuleError, match="reads divisor, as large as a width"):
                refused(x)


def in_rows(x: Tensor) -> Tensor:
    """A size that no attribute has, in a function: a module that calls it becomes a part of the graph."""
    return x.unflatten(-1, (8, -1)).flip(-2).flatten(-2) if x.shape[-1] == 96 else x


class Bounded(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.most = width
        self.fc, self.back = nn.Linear(width, 96), nn.Linear(96, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.back(in_rows(self.fc(x[:, : self.most])).relu())


def test_a_bound_in_a_part_of_the_graph_is_that_parts_own() -> None:
    """Numbers are set back in modules whose own code runs."""
    model = Limited(64, cuts, 64, 64)
    model.mix = Bounded(64)
    randomise(model.double().eval())
    x = torch.randn(1, 3, 8, 8).double()
    pruned = fxprune.prune(model, 0.5, example_inputs=x, form="module")
    assert [path for path, _ in fxprune.report(model, pruned).replaced] == ["mix"]
    graph = fxprune.apply(model, fxprune.plan_of(pruned), example_inputs=x)
    torch.testing.assert_close(pruned(x), graph(x))
    assert pruned.limit == 64
