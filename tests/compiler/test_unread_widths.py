"""form="module": numbers that the captured call does not read, small ones as well, as other methods do."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.certify.zoo import randomise
from fxprune.errors import UnsupportedModuleError
from fxprune.result.pruned_module import record_of


class Plain(nn.Module):
    """Its width says what another head gets, and what it costs."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.fc, self.norm, self.head = nn.Linear(6, dim), nn.LayerNorm(dim), nn.Linear(dim, 7)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.fc(x)))

    def cost(self) -> int:
        return 6 * self.dim + self.dim * 7

    def reset(self, classes: int) -> None:
        self.head = nn.Linear(self.dim, classes).to(self.fc.weight)


class Handed(Plain):
    """Hands its width on to what builds the layers, twice as much of it to some, and keeps it under a key."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.mlp, self.sizes = Hidden(dim=dim), {"out": dim, "hidden": 2 * dim}

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.mlp(self.norm(self.fc(x))))

    def cost(self) -> int:
        assert self.mlp.features == 2 * self.mlp.fc.in_features
        assert self.sizes == {"out": self.mlp.fc.in_features, "hidden": self.mlp.fc.out_features}
        return super().cost()


class Hidden(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        hidden = self.features = dim * 2
        self.fc, self.back = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.back(self.fc(x).relu())


class Attends(nn.Module):
    """Has as many of each other thing as it is wide: heads, sides of a patch, blocks."""

    def __init__(self, width: int, heads: int, side: int, most: int, depth: int, period: int) -> None:
        super().__init__()
        self.num, self.side, self.most, self.blocks, self.period = heads, side, most, depth, period
        self.patch, self.fc, self.each = (
            nn.Conv2d(3, width, side, side),
            nn.Linear(width, width),
            width // heads,
        )
        self.norms = nn.Sequential(*(nn.LayerNorm(width) for _ in range(depth)))
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).mT
        return self.head(self.norms(self.fc(x)).mean(1))

    def grid(self, x: Tensor) -> int:
        return x.shape[-1] // self.side

    def of_heads(self, n: int) -> list[int]:
        return [n // self.num] * self.num

    def depth(self) -> int:
        return self.blocks + 1

    def first(self, x: Tensor) -> Tensor:
        return x[: self.most]

    def waves(self, x: Tensor) -> Tensor:
        return x / self.period


def pruned_of(model: nn.Module, *shape: int, capture: str = "auto") -> nn.Module:
    model, x = randomise(model.double().eval()), torch.randn(2, *shape).double()
    pruned = fxprune.prune(model, 0.5, example_inputs=x, form="module", capture=capture)
    graph = fxprune.prune(model, 0.5, example_inputs=x, capture=capture)
    assert record_of(pruned).own.is_whole
    x = torch.randn(3, *shape).double()
    torch.testing.assert_close(pruned(x), graph(x))
    return pruned


@pytest.mark.parametrize("dim", [8, 12, 24, 48, 60, 64, 68])
@pytest.mark.parametrize("cls", [Plain, Handed])
def test_small_widths_that_no_call_reads_follow(cls: type[Plain], dim: int, capture: str) -> None:
    torch.manual_seed(dim)
    pruned = pruned_of(cls(dim), 6, capture=capture)
    width = pruned.norm.weight.numel()
    assert width < dim and pruned.dim == width and pruned.cost() == 13 * width
    pruned.reset(3)
    assert pruned(torch.ones(4, 6).double()).shape == (4, 3)
    assert not record_of(pruned).own.unsure


@pytest.mark.parametrize("n", [16, 24])
def test_small_numbers_of_other_things_stay(n: int, capture: str) -> None:
    torch.manual_seed(n)
    pruned = pruned_of(Attends(*[n] * 6), 3, 2 * n, 2 * n, capture=capture)
    assert pruned.head.in_features < n
    assert (pruned.num, pruned.side, pruned.most, pruned.blocks) == (n,) * 4
    x = torch.randn(2 * n, 2 * n)
    assert pruned.grid(x) == 2 and pruned.depth() == n + 1 and len(pruned.of_heads(2 * n)) == n
    assert torch.equal(pruned.first(x), x[:n])
    with pytest.raises(UnsupportedModuleError, match="waves reads period, as large as a width"):
        pruned.waves(x)


class Stages(nn.Module):
    """Says of each stage how wide it is, and how much smaller its map; one keeps its width."""

    def __init__(self, *widths: int) -> None:
        super().__init__()
        self.stages = nn.ModuleList()
        self.info, before = [], 3
        for i, width in enumerate(widths):
            self.stages.append(nn.Conv2d(before, width, 2, 2))
            self.info.append({"width": width, "smaller": 2 ** (i + 1), "module": f"stages.{i}"})
            before = width

    def forward(self, x: Tensor) -> Tensor:
        return self.maps(x)[-1]

    def maps(self, x: Tensor) -> list[Tensor]:
        found = []
        for stage in self.stages:
            found.append(x := stage(x))
        return found


class Around(nn.Module):
    """Has a model's list, whose paths begin at that."""

    def __init__(self, model: Stages) -> None:
        super().__init__()
        self.model, self.info = model, model.info

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)

    def maps(self, x: Tensor) -> list[Tensor]:
        return self.model.maps(x)


@pytest.mark.parametrize("widths", [(8, 8, 12, 10), (4, 16, 16, 8), (32, 64, 12, 64)])
@pytest.mark.parametrize("wrap", [lambda m: m, Around])
def test_numbers_beside_a_path_say_how_wide_that_is(widths: tuple[int, ...], wrap: type[Around]) -> None:
    torch.manual_seed(sum(widths))
    pruned = pruned_of(wrap(Stages(*widths)), 3, 32, 32)
    found = [t.shape[1] for t in pruned.maps(torch.ones(1, 3, 64, 32).double())]
    assert [info["width"] for info in pruned.info] == found != [*widths]
    assert [info["smaller"] for info in pruned.info] == [2, 4, 8, 16]


class Classes(nn.Module):
    """Has as many classes as channels: the hidden ones shrink, and those of the output stay."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.classes = classes
        self.stem, self.more = nn.Conv2d(3, width, 3), nn.Conv2d(width, 24, 3)
        self.head = nn.Linear(24, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.more(self.stem(x).relu()).relu().mean((2, 3)))

    def targets(self, y: Tensor) -> Tensor:
        return nn.functional.one_hot(y, self.classes)


@pytest.mark.parametrize("width", [8, 10, 16, 32, 48, 64])
def test_what_stays_in_one_layer_and_shrinks_in_another_is_left_or_refused(width: int) -> None:
    model = Classes(width, width).double().eval()
    randomise(model)
    x = torch.randn(1, 3, 9, 9, dtype=torch.float64)
    pruned = fxprune.prune(model, 0.5, example_inputs=x, form="module")
    assert pruned.classes == width == pruned.head.out_features
    with contextlib.suppress(UnsupportedModuleError):
        assert pruned.targets(torch.arange(3)).shape == (3, width)
