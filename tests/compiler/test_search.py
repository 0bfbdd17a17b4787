"""Numbers are looked for step by step, and what code keeps meanwhile is taken back."""

import contextlib
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.certify.zoo import randomise
from fxprune.compiler.native import watch
from fxprune.compiler.native.search import Search
from fxprune.result.own_code import OwnCode
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

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        return self.head(x + self.inner(x))


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


@pytest.mark.parametrize("kept", [True, False])
def test_what_code_keeps_is_taken_back(kept: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not kept:  # this is what the test is for: the first number tried would stay
        monkeypatch.setattr(watch, "_state_kept", forgetful)
    assert own_code(Remembers()).is_whole is kept


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
