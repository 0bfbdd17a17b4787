"""form="module": a number that only the other way of building a module reads is no reason to refuse calls."""

from __future__ import annotations

import pytest
import torch
from helpers import randomise
from torch import Tensor, nn

import fxprune
from fxprune.errors import UnsupportedModuleError
from fxprune.result.pruned_module import record_of

DIM, HEADS = 48, 6
X = torch.randn(2, 3, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Joint(nn.Module):
    """Of one projection, or of three that may have other heads."""

    def __init__(self, joint: bool = True) -> None:
        super().__init__()
        self.heads, self.other_heads = HEADS, HEADS
        self.qkv = nn.Linear(8, 3 * DIM) if joint else None
        self.q, self.kv = (None, None) if joint else (nn.Linear(8, DIM), nn.Linear(8, 2 * DIM))
        self.proj = nn.Linear(DIM, 8)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = (t.transpose(1, 2) for t in self.split(x))
        bias = 0 if mask is None else mask
        mixed = (q @ k.mT * 0.35 + bias).softmax(-1) @ v
        return x + self.proj(mixed.transpose(1, 2).flatten(2))

    def split(self, x: Tensor) -> tuple[Tensor, ...]:
        if self.qkv is not None:
            q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, DIM // HEADS)).unbind(2)
        else:
            q = self.q(x).unflatten(-1, (self.heads, DIM // HEADS))
            k, v = self.kv(x).unflatten(-1, (2, self.other_heads, DIM // HEADS)).unbind(2)
        return q, k, v


class Chosen(Joint):
    """The same in one expression, whose other side comes first."""

    def split(self, x: Tensor) -> tuple[Tensor, ...]:
        heads = self.other_heads if self.qkv is None else self.heads
        return self.qkv(x).unflatten(-1, (3, heads, DIM // HEADS)).unbind(2)


class ByArgument(Joint):
    """Reads the other number where a call gives a mask: that may be any."""

    def split(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.qkv(x).unflatten(-1, (3, self.heads, DIM // HEADS)).unbind(2)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        if self.qkv is not None and mask is not None:
            mask = mask.expand(-1, self.other_heads, -1, -1)
        return super().forward(x, mask)


class Switched(ByArgument):
    """Sets what it decides by, in a method that may be called."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        y = super(ByArgument, self).forward(x, mask)
        if self.q is not None:
            y = y * self.other_heads
        return y

    def separate(self) -> None:
        self.q = nn.Identity()


class Model(nn.Module):
    def __init__(self, cls: type[Joint], *given: bool) -> None:
        super().__init__()
        self.block, self.head = cls(*given), nn.Linear(8, 4)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.head(self.block(x, mask))


@pytest.mark.parametrize(("cls", "given"), [(Joint, (True,)), (Joint, (False,)), (Chosen, ())])
def test_what_the_module_is_not_built_for_refuses_no_call(cls: type[Joint], given: tuple[bool, ...]) -> None:
    model = randomise(Model(cls, *given).double().eval())
    pruned = fxprune.prune(model, 0.5, example_inputs=X, form="module")
    assert record_of(pruned).own.is_whole and pruned.block.heads == 3
    mask = torch.randn(1, 1, 3, 3, dtype=torch.float64)
    with_mask = fxprune.prune(model, 0.5, example_inputs=(X, mask), form="module")
    assert torch.allclose(pruned(X, mask), with_mask(X, mask))


@pytest.mark.parametrize("cls", [ByArgument, Switched])
def test_what_a_call_may_come_to_is_refused_still(cls: type[Joint]) -> None:
    model = randomise(Model(cls).double().eval())
    pruned = fxprune.prune(model, 0.5, example_inputs=X, form="module")
    mask = torch.randn(1, 1, 3, 3, dtype=torch.float64)
    with pytest.raises(UnsupportedModuleError, match="other_heads"):
        pruned(X, mask)
