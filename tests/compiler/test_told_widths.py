"""form="module": what source says of numbers, through calls that can't be followed as well."""

from __future__ import annotations

import copy
import gc
import pickle
import types
import weakref
from collections.abc import Callable
from functools import cached_property, partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.certify.zoo import randomise
from fxprune.compiler.native import code_widths
from fxprune.compiler.native.code_widths import is_width_in_code
from fxprune.errors import UnsupportedModuleError
from fxprune.result.own_code import Slot
from fxprune.result.pruned_module import record_of

Norm = partial(nn.LayerNorm, eps=1e-5)


def built(name: str, *args: Any, **kwargs: Any) -> nn.Module:
    return {"norm": nn.LayerNorm, "linear": nn.Linear}[name](*args, **kwargs)


class Sized(nn.Module):
    """A model that makes tokens and heads as large as its width."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.features, self.inner = width, hidden

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        return self.head(x + self.blocks(self.norm(x)))

    def tokens(self, n: int) -> Tensor:
        return torch.zeros(n, self.features)

    @property
    def out_features(self) -> int:
        return self.inner


class ByMethods(Sized):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__(width, hidden)
        self.embed, self.head, self.norm = nn.Linear(7, width), nn.Linear(width, 5), nn.LayerNorm(width)
        self.blocks = self.made(width, hidden)

    def made(self, w: int, h: int) -> nn.Module:
        return nn.Sequential(nn.Linear(w, h), nn.GELU(), nn.Linear(h, w))


class ByAttribute(Sized):
    LAYER = nn.Linear

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__(width, hidden)
        self.embed, self.head = self.LAYER(7, width), self.LAYER(width, 5)
        self.norm, self.blocks = nn.Identity(), nn.Sequential(self.LAYER(width, hidden), nn.GELU())
        self.blocks.append(self.LAYER(hidden, width))


class ByTable(Sized):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__(width, hidden)
        self.embed, self.head = built("linear", 7, width), built("linear", width, 5)
        self.norm = built("norm", normalized_shape=width)
        self.blocks = nn.Sequential(built("linear", width, hidden), built("linear", hidden, width))


class ByPartial(Sized):
    def __init__(self, width: int, hidden: int) -> None:
        linear = dict(it=nn.Linear)
        super().__init__(width, hidden)
        self.embed, self.head, self.norm = linear["it"](7, width), linear["it"](width, 5), Norm(width)
        self.blocks = nn.Sequential(linear["it"](width, hidden), linear["it"](hidden, width))


class Coded(nn.Module):
    """A part whose other method its parent calls; it reads a number that no layer is built of."""

    def __init__(self, width: int, hidden: int, period: int) -> None:
        super().__init__()
        self.up, self.down, self.period, self.best = nn.Linear(7, hidden), nn.Linear(hidden, width), period, 3

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(x))

    def encode(self, x: Tensor) -> Tensor:
        return self.down(self.waves(self.up(x)))

    def waves(self, x: Tensor) -> Tensor:
        return torch.sin(x / self.period)

    def unused(self, x: Tensor) -> Tensor:
        return x * self.period

    @property
    def rate(self) -> float:
        return 1 / self.period

    @cached_property
    def rates(self) -> float:
        return 2 * self.rate


class Rare(Coded):
    def waves(self, x: Tensor) -> Tensor:
        return x / self.period if self.best > 3 else x


class Parent(nn.Module):
    def __init__(self, part: nn.Module, width: int, name: str) -> None:
        super().__init__()
        self.part, self.norm, self.head, self.name = part, nn.LayerNorm(width), nn.Linear(width, 5), name

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.part.encode(x)))


class Asks(Parent):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(getattr(self.part, self.name)(x)))


def pruned_of(model: nn.Module, **options: str) -> tuple[nn.Module, nn.Module]:
    model, x = randomise(model.double().eval()), torch.randn(1, 6, 7).double()
    pruned = fxprune.prune(model, 0.5, example_inputs=x, form="module", **options)
    graph, x = fxprune.prune(model, 0.5, example_inputs=x, **options), torch.randn(3, 6, 7).double()
    assert record_of(pruned).own.is_whole
    torch.testing.assert_close(pruned(x), graph(x))
    return model, pruned


@pytest.mark.parametrize("width", [96, 160])
@pytest.mark.parametrize("cls", [ByMethods, ByAttribute, ByTable, ByPartial])
def test_numbers_that_calls_get_which_nothing_follows_are_widths(
    cls: type[Sized], width: int, capture: str
) -> None:
    torch.manual_seed(width)
    _, pruned = pruned_of(cls(width, 2 * width), capture=capture)
    assert (pruned.features, pruned.inner, pruned.out_features) == (width // 2, width, width)
    assert pruned.tokens(3).shape == (3, width // 2) and not record_of(pruned).own.unsure


@pytest.mark.parametrize("hidden", [96, 160])
@pytest.mark.parametrize("parent", [Parent, Asks])
@pytest.mark.parametrize("cls", [Coded, Rare])
def test_methods_that_a_call_runs_are_not_refused(
    cls: type[Coded], parent: type[Parent], hidden: int, capture: str
) -> None:
    torch.manual_seed(hidden)
    model, pruned = pruned_of(parent(cls(24, hidden, hidden), 24, "encode"), capture=capture)
    assert fxprune.verify(model, pruned)
    with pytest.raises(UnsupportedModuleError, match=r"unused reads part\.period"):
        pruned.part.unused(torch.ones(2))


@pytest.mark.parametrize("hidden", [96, 160])
def test_properties_that_read_what_source_does_not_tell_are_refused(hidden: int) -> None:
    torch.manual_seed(hidden)
    _, pruned = pruned_of(nn.Sequential(Rare(24, hidden, hidden), nn.LayerNorm(24), nn.Linear(24, 5)))
    x = torch.randn(2, 6, 7).double()
    for same in (pruned, copy.deepcopy(pruned), pickle.loads(pickle.dumps(pruned))):
        torch.testing.assert_close(same(x), pruned(x))
        assert isinstance(same[0], Rare) and same[0].period == hidden
        for read in (lambda part: part.rate, lambda part: part.rates):
            with pytest.raises(UnsupportedModuleError, match=r"Rare\.rates? reads 0\.period"):
                read(same[0])


def chained(start: Callable[[int], nn.Module], n: int) -> list[types.FunctionType]:
    """Write functions of which each calls the one before."""
    found: list[Any] = [start]
    for _ in range(n):
        found.append(one_more(found[-1]))
    return found


def one_more(inner: Callable[[int], nn.Module]) -> types.FunctionType:
    def outer(width: int) -> nn.Module:
        return inner(width)

    return outer  # type: ignore[return-value]


def linear(width: int) -> nn.Module:
    return nn.Linear(width, width)


def said_of(function: types.FunctionType) -> str:
    return code_widths._given(code_widths.Place(function)).says(["width"])


@pytest.mark.parametrize("n", [8, 11])
def test_what_source_says_does_not_depend_on_what_was_asked_before(n: int) -> None:
    fresh = [said_of(function) for function in chained(linear, n)]
    assert fresh[3] == "alone"
    for order in (range(n + 1), reversed(range(n + 1))):
        functions = chained(linear, n)
        said = {i: said_of(functions[i]) for i in order}
        assert [said[i] for i in range(n + 1)] == fresh


@pytest.mark.parametrize("width", [48, 96])
def test_functions_of_classes_made_on_the_way_are_let_go(width: int) -> None:
    class Made(ByMethods):
        def __init__(self) -> None:
            super().__init__(width, 2 * width)
            self.also = width

        def more(self) -> Tensor:
            return torch.ones(self.also)

    function = weakref.ref(Made.more)
    assert is_width_in_code(Slot("", ("also",), 1), Made, [Made])
    del Made
    gc.collect()
    assert function() is None
