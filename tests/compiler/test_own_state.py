"""form="module": what modules hold in their plain state is the instance's own."""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.certify.zoo import randomise
from fxprune.result.pruned_module import record_of


class Mlp(nn.Module):
    """Has its widths from a tuple that others hold as well."""

    def __init__(self, dims: tuple[int, int]) -> None:
        super().__init__()
        self.dims = dims
        self.fc1, self.fc2 = nn.Linear(dims[0], dims[1]), nn.Linear(dims[1], dims[0])

    def forward(self, x: Tensor) -> Tensor:
        h = self.fc1(x).reshape(-1, 2, self.dims[1] // 2).relu()
        return x + self.fc2(h.reshape(len(x), self.dims[1]))


class Holds(nn.Module):
    """Holds tensors in a list, a dict, a tuple and an object."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        dims = (48, 96)
        self.a, self.c, self.plain = nn.Linear(12, 48), nn.Linear(48, 4), torch.randn(4)
        self.blocks = nn.ModuleList([Mlp(dims), Mlp(dims)])
        self.listed, self.named = [torch.randn(4)], {"one": (torch.randn(4), 1)}
        self.object, self.alias = SimpleNamespace(one=torch.randn(4)), [self.c.bias]

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        for block in self.blocks:
            x = block(x)
        x = (self.c(x) + self.listed[0]) * self.named["one"][0]
        return (x + self.object.one) * self.plain


class Counts(nn.Module):
    """Counts its calls, and takes the width of its heads from its input."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.a, self.qkv, self.c = nn.Linear(12, 48), nn.Linear(48, 144), nn.Linear(48, 4)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        x = self.a(x)
        n, c = x.shape
        q, k, v = self.qkv(x).reshape(n, 3, 4, c // 4).permute(1, 2, 0, 3)
        y = (q @ k.mT * 12**-0.5).softmax(-1) @ v
        return self.c(x + y.transpose(0, 1).reshape(n, c))


@pytest.fixture(scope="module")
def holds() -> tuple[Holds, Holds]:
    model = randomise(Holds().eval())
    return model, fxprune.prune(model, 0.5, example_inputs=torch.randn(3, 12), form="module")


def test_each_module_has_the_sizes_of_a_tuple_that_several_hold(holds: tuple[Holds, Holds]) -> None:
    model, pruned = holds
    assert record_of(pruned).own.is_whole and fxprune.verify(model, pruned) < 1e-8
    assert [block.dims for block in pruned.blocks] == [(24, 48)] * 2
    assert [block.dims for block in model.blocks] == [(48, 96)] * 2


def test_tensors_in_plain_state_are_the_results_own(holds: tuple[Holds, Holds], tmp_path: Path) -> None:
    model, pruned = holds
    assert pruned.listed[0].data_ptr() != model.listed[0].data_ptr()
    assert pruned.named["one"][0].data_ptr() != model.named["one"][0].data_ptr()
    fxprune.save(pruned, tmp_path, build="mine:make")
    other = Holds(seed=1).eval()
    loaded, x = fxprune.load(tmp_path, model=other), torch.randn(5, 12)
    assert torch.equal(loaded(x), pruned(x)) and fxprune.verify(model, loaded) < 1e-8
    assert not torch.equal(other.listed[0], pruned.listed[0])
    assert loaded.alias[0] is loaded.c.bias and pruned.alias[0] is pruned.c.bias


def test_a_buffer_that_code_counts_in_stays_as_it_was() -> None:
    model = randomise(Counts().eval())
    pruned = fxprune.prune(
        model, 0.5, example_inputs=torch.randn(3, 12), form="module", capture="export", split_qkv=True
    )
    assert record_of(pruned).own is not None and int(model.calls) == 0 == int(pruned.calls)


class Recipe:
    """How a layer turns its input, found once for all that are alike."""

    def __init__(self, heads: int) -> None:
        self.heads, self.rank = heads, 4


@functools.lru_cache
def recipe(heads: int) -> Recipe:
    return Recipe(heads)


class Split(nn.Module):
    """Cuts channels into heads by a recipe of a cache; a copy of it asks for that anew."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.sizes = {"heads": heads}
        self.recipes = {heads: recipe(heads)}

    def __getstate__(self) -> dict[str, int]:
        return self.sizes

    def __setstate__(self, state: dict[str, int]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def forward(self, x: Tensor) -> Tensor:
        y = x.unflatten(-1, (self.sizes["heads"], -1)).transpose(1, 2)
        if y.ndim != next(iter(self.recipes.values())).rank:
            raise ValueError("another rank")
        return y


class SplitHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.split, self.proj = nn.Linear(8, 3 * 32), Split(4), nn.Linear(32, 8)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = map(self.split, self.qkv(x).chunk(3, -1))
        return self.proj(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def test_what_a_cache_gives_to_every_copy_is_not_written_to(capture: str) -> None:
    """Four heads become two; the rank of what they are cut to, four as well, is said by an object of all."""
    model, x = randomise(SplitHeads().eval()), torch.randn(2, 5, 8)
    options = {"example_inputs": x, "attention": "heads", "capture": capture, "form": "module"}
    pruned = fxprune.prune(model, 0.5, **options)
    assert fxprune.verify(model, pruned, example_inputs=x) < 1e-8
    assert pruned.split.sizes == {"heads": 2} and recipe(4).rank == recipe(2).rank == 4
    for same in (copy.deepcopy(model), SplitHeads(), copy.deepcopy(pruned)):
        assert same(x).shape == x.shape


@functools.lru_cache
def waves(n: int, width: int) -> Tensor:
    return torch.cos(torch.arange(n)[:, None] * torch.linspace(0, 1, width))


class Waves(nn.Module):
    """Adds a table that its file or its class keeps."""

    tables: ClassVar[dict[tuple[int, int], Tensor]] = {}

    def __init__(self, cached: bool) -> None:
        super().__init__()
        self.cached, self.a, self.b = cached, nn.Linear(8, 32), nn.Linear(32, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        n, width = y.shape[1:]
        if self.cached:
            return self.b(y + waves(n, width))
        if (n, width) not in self.tables:
            self.tables[n, width] = torch.cos(torch.arange(n)[:, None] * torch.linspace(0, 1, width))
        return self.b(y + self.tables[n, width])


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("cached", [False, True])
def test_tables_that_code_keeps_outside_of_modules_stay(cached: bool, warm: bool) -> None:
    """Runs in float64, and on half the width, leave none behind: model and result go on in float32."""
    waves.cache_clear()
    Waves.tables.clear()
    model, x = randomise(Waves(cached).eval()), torch.randn(2, 5, 8)
    if warm:
        model(x)
    before = dict(Waves.tables)
    pruned = fxprune.prune(model, 0.5, example_inputs=x, capture="export", form="module")
    assert fxprune.verify(model, pruned, example_inputs=x) < 1e-8
    assert Waves.tables.keys() == before.keys() and all(Waves.tables[k] is before[k] for k in before)
    assert model(x).dtype == pruned(x).dtype == torch.float32


class Scales(nn.Module):
    """Scales by tensors that no module knows of: in a list, a dict, a tuple and an object."""

    def __init__(self, width: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(12, width), nn.Linear(width, 4)
        self.listed = [torch.randn(width, dtype=dtype), torch.randn(3)]
        self.named = {"one": (torch.randn(4), torch.randn(1, width, dtype=dtype))}
        self.object = SimpleNamespace(one=torch.randn(width, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x) * self.listed[0] + self.named["one"][1]
        return self.last((x * self.object.one).relu())


@pytest.mark.parametrize(("width", "dtype"), [(24, torch.float64), (48, torch.float32), (80, torch.float64)])
def test_tensors_in_plain_state_keep_the_plans_channels(
    width: int, dtype: torch.dtype, capture: str, tmp_path: Path
) -> None:
    torch.manual_seed(width)
    model, x = randomise(Scales(width, dtype).to(dtype).eval()), torch.randn(3, 12, dtype=dtype)
    pruned = fxprune.prune(model, 0.5, example_inputs=x, form="module", capture=capture)
    own = record_of(pruned).own
    assert own.is_whole and type(pruned).forward is Scales.forward, own.replaced
    assert fxprune.verify(model, pruned, example_inputs=torch.randn(5, 12, dtype=dtype)) < 1e-8
    half = width // 2
    assert [len(t) for t in pruned.listed] == [half, 3] and len(pruned.object.one) == half
    assert [t.shape for t in pruned.named["one"]] == [(4,), (1, half)]
    fxprune.save(pruned, tmp_path, build="mine:make")
    assert torch.equal(fxprune.load(tmp_path, model=model)(x), pruned(x))


@pytest.mark.parametrize("width", [24, 48])
def test_a_tensor_of_the_same_numbers_for_tokens_stays_as_it_is(width: int, capture: str) -> None:
    torch.manual_seed(width)
    model = randomise(Scales(width, torch.float64).double().eval())
    model.listed[0], model.plain = torch.ones(width).double(), torch.ones(width).double()
    model.shown = [torch.ones(width).double()]  # which no code reads that runs
    x = torch.randn(2, width, 12).double()
    pruned = fxprune.prune(model, 0.5, example_inputs=x, form="module", capture=capture)
    assert fxprune.verify(model, pruned) < 1e-8
    assert record_of(pruned).own.is_graph or len(pruned.shown[0]) == width
