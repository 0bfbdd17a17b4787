"""form="module": code that takes two sizes from one number has the other from an attribute of the module."""

from __future__ import annotations

import ast
import copy
import functools
import gc
import inspect
import linecache
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.certify.zoo import randomise
from fxprune.errors import UnsupportedModuleError
from fxprune.result import own_spelling
from fxprune.result.decorators import undecorated
from fxprune.result.own_spelling import source_of, spelled_anew, unspelled
from fxprune.result.pruned_module import record_of

DIM, HEADS = 48, 4


class Attention(nn.Module):
    """Takes the width of its heads, and that of all of them, from the width of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.scale = HEADS, (DIM // HEADS) ** -0.5
        self.qkv, self.proj, self.drop = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM), nn.Dropout(0.1)

    def merged(self, x: Tensor, c: int) -> Tensor:
        return x.transpose(1, 2).reshape(x.shape[0], -1, c)

    def forward(self, x: Tensor) -> Tensor:
        B, N, C = x.shape
        q, k, v = self.qkv(x).reshape(B, N, 3, self.heads, C // self.heads).permute(2, 0, 3, 1, 4)
        y = self.drop((q @ k.mT * self.scale).softmax(-1)) @ v
        return self.proj(self.merged(y, C))


class TwoUses(Attention):
    """Needs the width of its input as well, in a line of code with the other."""

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        x = x.reshape(b * n, c)  # of the stream
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        return self.proj((((q @ k.mT) * self.scale).softmax(-1) @ v).transpose(1, 2).reshape(b, n, c))


class Inherits(Attention):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def halved(method: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return what calls a method, and does more."""

    @functools.wraps(method)
    def call(self: nn.Module, *args: Tensor, **options: Tensor) -> Tensor:
        return method(self, *args, **options) / 2

    return call


def remembered(method: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return what calls a method by a cache, or itself."""
    cached = functools.lru_cache(method)

    @functools.wraps(method)
    def call(self: nn.Module, x: Tensor) -> Tensor:
        return cached(self, x) if x.is_meta else method(self, x)

    return call


class Decorated(Attention):
    @halved
    @torch.no_grad()
    @halved
    def forward(self, x: Tensor) -> Tensor:
        B, N, C = x.shape
        q, k, v = self.qkv(x).reshape(B, N, 3, self.heads, C // self.heads).permute(2, 0, 3, 1, 4)
        return self.proj(((q @ k.mT * self.scale).softmax(-1) @ v).transpose(1, 2).reshape(B, N, C))


class Remembered(Decorated):
    @remembered
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


class Model(nn.Module):
    """Its stream is its output, so heads go and the stream stays."""

    def __init__(self, attention: Callable[[], nn.Module] = Attention) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, DIM, 8, 8)
        self.norms = nn.ModuleList([nn.LayerNorm(DIM) for _ in range(2)])
        self.blocks = nn.ModuleList([attention() for _ in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).mT
        for norm, block in zip(self.norms, self.blocks, strict=True):
            x = x + block(norm(x))
        return x


class Tokens(nn.Module):
    """Spells its heads out, in the number of rows that tokens and heads make together."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.qkv, self.proj = nn.Linear(8, DIM), nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        q, k, v = (t.reshape(len(t), x.shape[1] * 4, 12) for t in self.qkv(x).chunk(3, -1))
        q, k, v = (t.reshape(len(t), -1, 4, 12).transpose(1, 2) for t in (q, k, v))
        y = (q @ k.mT * 12**-0.5).softmax(-1) @ v
        return x + self.proj(y.transpose(1, 2).flatten(2))


def image(height: int = 32, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, height, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return randomise(Model().eval())


@pytest.fixture(scope="module")
def pruned(model: nn.Module) -> nn.Module:
    return fxprune.prune(model, 0.5, example_inputs=image(), form="module")


def same(a: nn.Module, b: nn.Module, *images: Tensor) -> bool:
    return all(torch.allclose(a(x), b(x), rtol=1e-4, atol=1e-5) for x in images)


SIZES = image(32, 1), image(64, 3)


def test_its_own_code_runs_whole(model: nn.Module, pruned: nn.Module) -> None:
    own = record_of(pruned).own
    assert own.is_whole and {s.path for s in own.spellings} == {"blocks.0", "blocks.1"}
    assert type(pruned) is Model and all(isinstance(block, Attention) for block in pruned.blocks)
    assert type(pruned.blocks[0]).__name__ == "Attention" and pruned.blocks[0].heads == HEADS // 2
    assert fxprune.verify(model, pruned, example_inputs=image()) < 1e-8
    assert same(pruned, fxprune.apply(model, fxprune.plan_of(pruned), example_inputs=image()), *SIZES)
    assert {*pruned.state_dict()} == {*model.state_dict()}


def test_report_names_the_size(model: nn.Module, pruned: nn.Module) -> None:
    report = fxprune.report(model, pruned, example_inputs=image())
    assert not report.replaced
    assert "blocks.0.forward: C: 48 -> 24" in report.spelled and "C: 48 -> 24" in str(report)


def test_it_trains_in_its_own_code(model: nn.Module, pruned: nn.Module) -> None:
    trained = copy.deepcopy(pruned).train()
    first, second = trained(image()), trained(image())
    assert not torch.equal(first, second)  # its dropout
    first.square().mean().backward()
    assert all(p.grad is not None for p in trained.parameters())


@pytest.mark.parametrize("attention", [TwoUses, Inherits])
def test_one_use_of_a_number_may_be_another_size(attention: type[nn.Module]) -> None:
    model = randomise(Model(attention).eval())
    pruned = fxprune.prune(model, 0.5, example_inputs=image(), form="module")
    assert fxprune.verify(model, pruned, example_inputs=image()) < 1e-8
    own = record_of(pruned).own
    if attention is TwoUses:
        assert own.is_whole and [s.place.text for s in own.spellings] == ["c", "c"]
    assert same(pruned, fxprune.apply(model, fxprune.plan_of(pruned), example_inputs=image()), *SIZES)


def test_decorators_stay_around_code_that_is_edited() -> None:
    model = randomise(Model(Decorated).eval())
    pruned = fxprune.prune(model, 0.5, example_inputs=image(), form="module")
    own = record_of(pruned).own
    assert own.is_whole and {s.path for s in own.spellings} == {"blocks.0", "blocks.1"}
    assert fxprune.verify(model, pruned, example_inputs=image()) < 1e-8
    assert same(pruned, fxprune.apply(model, fxprune.plan_of(pruned), example_inputs=image()), *SIZES)
    assert same(pruned, pickle.loads(pickle.dumps(pruned)), *SIZES)
    assert "C = self._size_forward" in inspect.getsource(type(pruned.blocks[0]).forward)
    assert not pruned.blocks[0](torch.randn(1, 4, DIM)).requires_grad


def test_a_decorator_that_holds_more_than_the_method_is_left_alone() -> None:
    assert undecorated(Remembered.forward) is Remembered.forward
    assert undecorated(Decorated.forward).__code__.co_varnames[1] == "x"


def test_a_number_of_tokens_stays_one() -> None:
    model, x = randomise(Tokens().eval()), torch.randn(2, 6, 8)
    pruned = fxprune.prune(model, 0.5, example_inputs=x, attention="heads", form="module")
    assert record_of(pruned).own.is_whole and fxprune.verify(model, pruned, example_inputs=x) < 1e-8
    graph = fxprune.apply(model, fxprune.plan_of(pruned), example_inputs=x)
    assert same(pruned, graph, torch.randn(3, 9, 8), torch.randn(1, 12, 8))


def test_copies_and_folders_keep_it(model: nn.Module, pruned: nn.Module, tmp_path: Path) -> None:
    fxprune.save(pruned, tmp_path / "saved", build="mine:make")
    loaded = fxprune.load(tmp_path / "saved", model=Model().eval())
    assert record_of(loaded).own == record_of(pruned).own
    for other in (copy.deepcopy(pruned), pickle.loads(pickle.dumps(pruned)), loaded):
        assert type(other.blocks[0]) is type(pruned.blocks[0])
        assert all(torch.equal(other(x), pruned(x)) for x in SIZES)


@pytest.mark.parametrize("capture", ["symbolic", "export"])
def test_it_is_pruned_again(pruned: nn.Module, capture: str) -> None:
    again = fxprune.prune(pruned, 0.5, example_inputs=image(), form="module", capture=capture)
    assert type(again) is Model and unspelled(type(again.blocks[0])) is Attention
    assert fxprune.verify(pruned, again, example_inputs=image()) < 1e-8
    assert again.blocks[0].heads == 1 and same(pickle.loads(pickle.dumps(again)), again, *SIZES)


def test_its_source_is_what_runs(pruned: nn.Module) -> None:
    source = inspect.getsource(type(pruned.blocks[0]).forward)
    assert "B, N, C = x.shape; C = self._size_forward" in source


def test_an_expression_inside_another_goes_with_it(pruned: nn.Module) -> None:
    source = source_of(Attention.forward)
    assert source is not None
    nodes = [n for n in ast.walk(source.node) if isinstance(n, ast.expr)]
    outer = next(n for n in nodes if isinstance(n, ast.BinOp) and ast.unparse(n) == "C // self.heads")
    places = [source.place(outer), source.place(outer.left), source.place(outer.right)]
    block = copy.deepcopy(pruned.blocks[0])
    spelled_anew(block, places)
    assert f"3, self.heads, self.{places[0].attribute})" in inspect.getsource(type(block).forward)


def test_another_source_is_refused(pruned: nn.Module) -> None:
    places = [s.place for s in record_of(pruned).own.spellings[:1]]
    with pytest.raises(UnsupportedModuleError, match="is not what it was when the model was pruned"):
        spelled_anew(Attention(), [replace(places[0], text="B, N, D = x.shape")])
    with pytest.raises(UnsupportedModuleError, match="no plain method"):
        spelled_anew(nn.Identity(), [replace(places[0], method="gone")])


def test_code_that_nothing_runs_leaves_no_source_behind(pruned: nn.Module) -> None:
    source, block = source_of(Attention.forward), Attention()
    assert source is not None
    node = next(n for n in ast.walk(source.node) if isinstance(n, ast.Constant) and n.value == 3)
    spelled_anew(block, [source.place(node)])
    file = type(block).forward.__code__.co_filename
    assert linecache.getline(file, 1)
    del block
    own_spelling._class.cache_clear()
    gc.collect()
    assert not linecache.getline(file, 1)
    file = type(pruned.blocks[0]).forward.__code__.co_filename
    assert linecache.getline(file, 1)
