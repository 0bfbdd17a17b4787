"""Numbers are looked for step by step, and what code keeps meanwhile is taken back."""

import contextlib
import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.certify.zoo import randomise
from fxprune.compiler.native import watch
from fxprune.compiler.native.combinations import in_order
from fxprune.compiler.native.search import Search
from fxprune.compiler.native.spellings import AS_WRITTEN, SpelledSlot
from fxprune.result.own_calls import FullWidth, UnevenParts
from fxprune.result.own_code import OwnCode, Slot
from fxprune.result.pruned_module import record_of

WIDTH = 24


class Remembers(nn.Module):
    """Keeps how many heads it has from its first call on."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.shape = 4, None
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        if self.shape is None:
            self.shape = (3, self.heads, 6)
        q, k, v = self.qkv(x).unflatten(-1, self.shape).permute(2, 0, 3, 1, 4).unbind(0)
        y = (q @ k.transpose(-2, -1)).softmax(-1) @ v
        return self.proj(y.transpose(1, 2).flatten(2))


class Counts(nn.Module):
    """Keeps how many heads it has from its first call on, for others."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.bias, self.slopes = 4, None, nn.Parameter(torch.ones(4, 1, 1))

    def forward(self, n: int) -> Tensor:
        if self.bias is None:
            slopes = self.slopes.expand(-1, n, n)
            self.bias = nn.functional.pad(slopes, (0, 0, 0, 0, 0, self.heads - len(slopes)))
        return self.bias


class IsHanded(nn.Module):
    """Calls a module that lies elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = 4
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, bias: nn.Module) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        y = (q @ k.transpose(-2, -1) + bias(x.shape[1])).softmax(-1) @ v
        return self.proj(y.transpose(1, 2).flatten(2))


class SaysOften(nn.Module):
    """Says its width in line after line, with no layer in between."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        y = self.up(x).relu()
        y = y.reshape(b * n, 24)
        y = y.sigmoid().reshape(b, n, 24)
        y = y.sin().reshape(n * b, 24)
        y = y.exp().reshape(b, n, 24)
        y = y.cos().reshape(1, b, n, 24)
        return self.down(y[0])


class Whole(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.embed, self.inner, self.head = nn.Linear(8, WIDTH), inner, nn.Linear(WIDTH, 3)
        self.bias = Counts() if isinstance(inner, IsHanded) else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        more = () if self.bias is None else (self.bias,)
        return self.head(x + self.inner(x, *more))


def own_code(inner: nn.Module) -> OwnCode:
    torch.manual_seed(0)
    model, x = randomise(Whole(inner).eval()), torch.randn(2, 5, 8)
    pruned = fxprune.prune(model, 0.5, example_inputs=x, form="module", capture="export")
    assert fxprune.verify(model, pruned, example_inputs=x) < 1e-8
    own = record_of(pruned).own
    if own.is_whole:
        assert torch.equal(pruned(x[:1]), pruned(x)[:1]) or torch.allclose(pruned(x[:1]), pruned(x)[:1])
    return own


@contextlib.contextmanager
def forgetful(root: nn.Module) -> Iterator[None]:
    yield


@pytest.mark.parametrize("kind", [Remembers, IsHanded])
@pytest.mark.parametrize("kept", [True, False])
def test_what_code_keeps_is_taken_back(kind: type, kept: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not kept:  # this is what the test is for: the first number tried would stay
        monkeypatch.setattr(watch, "_state_kept", forgetful)
    assert own_code(kind()).is_whole is kept


@pytest.mark.parametrize("partial", [True, False])
def test_a_choice_that_goes_further_is_kept(partial: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not partial:
        mend = Search._mend_within

        def at_once(self: Search, *args: object) -> bool:
            found = mend(self, *args)
            self.next_best = None
            return found

        monkeypatch.setattr(Search, "_mend_within", at_once)
    own = own_code(SaysOften())
    assert own.is_whole is partial
    assert len(own.spellings) >= 5 or not partial


class Reduces(nn.Module):
    """Cuts keys and values to a width of their own, and says them all by the width of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.reduce, self.kv = (
            nn.Linear(WIDTH, WIDTH),
            nn.Linear(WIDTH, WIDTH),
            nn.Linear(WIDTH, 2 * WIDTH),
        )
        self.norm, self.proj, self.heads = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH), 1

    def forward(self, x: Tensor) -> Tensor:
        B, N, C = x.shape
        q = self.q(x).reshape(B, N, self.heads, C // self.heads).transpose(1, 2)
        y = self.reduce(x.reshape(B, N, C)).transpose(1, 2).reshape(B, C, N)
        y = self.norm(y.transpose(1, 2).reshape(B, N, C))
        k, v = self.kv(y).reshape(B, N, 2, self.heads, C // self.heads).permute(2, 0, 3, 1, 4)
        y = (q @ k.transpose(-2, -1)).softmax(-1) @ v
        return self.proj(y.transpose(1, 2).reshape(B, N, C))


def test_many_places_are_mended_one_by_one() -> None:
    torch.manual_seed(0)
    model, x = randomise(Whole(Reduces()).eval()), torch.randn(2, 5, 8)
    ratios = {"embed": 0.25, "inner.hidden2": 0.75}
    pruned = fxprune.prune(model, 0.5, example_inputs=x, form="module", ratios=ratios)
    inner = pruned.inner
    assert {pruned.embed.out_features, inner.norm.weight.numel(), inner.q.out_features} == {18, 8, 12}
    assert record_of(pruned).own.is_whole and fxprune.verify(model, pruned, example_inputs=x) < 1e-8


class Records(nn.Module):
    """Hooks keep what its blocks give; its code registers them in the first call, once."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.blocks = nn.Linear(8, 16), nn.ModuleList(nn.Linear(16, 16) for _ in range(3))
        self.head, self.width, self.hooked, self.seen = nn.Linear(8, 4), 16, False, list[Tensor]()

    def forward(self, x: Tensor) -> Tensor:
        if not self.hooked:
            for block in self.blocks:
                block.register_forward_hook(lambda block, args, given: self.seen.append(given))
            self.hooked = True
        self.seen.clear()
        x = self.stem(x)
        for block in self.blocks:
            x = block(x).relu()
        first, second = self.seen[:2]
        return self.head((first + 2 * second + x).reshape(-1, 2, self.width // 2).sum(1))


def test_hooks_that_code_registers_are_not_left_behind_by_looks() -> None:
    model = randomise(Records()).double().eval()
    x = torch.randn(3, 8, dtype=torch.float64)
    with torch.no_grad(), watch._state_kept(model):
        model(x)
    assert not model.hooked and not any(block._forward_hooks for block in model.blocks)
    pruned = fxprune.prune(model, 0.5, form="module", example_inputs=x)
    assert type(pruned) is Records and not record_of(pruned).own.replaced
    assert fxprune.verify(model, pruned) < 1e-8
    pruned(x)
    assert len(pruned.seen) == 3


def test_a_record_that_names_a_module_says_that_modules_width() -> None:
    class Stages(nn.Module):
        """Its first stage is as wide inside as the second one's result, and shrinks more."""

        def __init__(self) -> None:
            super().__init__()
            sizes = ((6, 128, 96), (96, 160, 128), (128, 192, 72))
            self.stages = nn.ModuleList(
                nn.Sequential(nn.Linear(a, b), nn.ReLU(), nn.Linear(b, c)) for a, b, c in sizes
            )
            self.head = nn.Linear(72, 5)
            self.records = [{"wide": c, "of": f"stages.{i}"} for i, (_, _, c) in enumerate(sizes)]

        def forward(self, x: Tensor) -> Tensor:
            for stage in self.stages:
                x = stage(x)
            return self.head(x)

    model, x = randomise(Stages().eval()), torch.randn(2, 6)
    pruned = fxprune.prune(model, 0.5, form="module", example_inputs=x, ratios={"stages.0*": 0.75})
    assert [stage[0].out_features for stage in pruned.stages] == [32, 80, 96]
    assert [record["wide"] for record in pruned.records] == [48, 64, 36]


def test_a_call_at_the_originals_width_is_tried_first() -> None:
    """Its module's own numbers are the original's for that, and no other's are."""

    def spelled(**more: Any) -> SpelledSlot:
        return SpelledSlot("places", ("_size",), 0, place=Any, old=16, spellings=Any, **more)

    options = [
        (Slot("places", ("waves",)), [8, 16]),
        (spelled(), [8, 16, AS_WRITTEN]),
        (spelled(ways=(UnevenParts(-1, (8, 8)), FullWidth())), [1, 2, AS_WRITTEN]),
        (Slot("attn", ("width",)), [4, 8]),
    ]
    tried = itertools.islice(in_order(options, [8, AS_WRITTEN, AS_WRITTEN, 4], "places"), 2)
    assert [*tried] == [(8, AS_WRITTEN, AS_WRITTEN, 4), (16, AS_WRITTEN, 2, 4)]
