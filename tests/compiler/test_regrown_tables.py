"""Tables that `forward` grows for longer inputs keep the channels that the plan keeps, or are refused."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.certify.zoo import randomise
from fxprune.errors import UnsupportedModuleError
from fxprune.result.pruned_module import record_of

TOKENS = 10


def sines(tokens: int, width: int) -> Tensor:
    turns = torch.arange(tokens)[:, None] / 100 ** (torch.arange(width) // 2 / width)
    return torch.where(torch.arange(width) % 2 == 0, turns.sin(), turns.cos()).double()


class Positions(nn.Module):
    """Adds sines of positions, and computes more of them once there are more tokens.

    uses: what else it does with its width: it views by it, or takes a scale from it.
    """

    def __init__(self, width: int, uses: str = "") -> None:
        super().__init__()
        self.width, self.uses = width, uses
        self.register_buffer("table", sines(TOKENS, width), persistent=False)

    def grow(self, tokens: int) -> None:
        self.table = sines(tokens, self.width)

    def forward(self, x: Tensor) -> Tensor:
        if x.size(1) > self.table.size(0):
            self.grow(x.size(1))
        if self.uses == "view":
            x = x.reshape(x.shape[0], -1, self.width)
        elif self.uses == "scale":
            x = x * math.sqrt(self.width)
        return x + self.table[: x.size(1)]


class Embeds(nn.Module):
    def __init__(self, width: int, uses: str = "") -> None:
        super().__init__()
        self.first, self.positions = nn.Linear(6, width), Positions(width, uses)
        self.mix, self.last = nn.Linear(width, 2 * width), nn.Linear(2 * width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.mix(self.positions(self.first(x))).relu())


class Whole(nn.Module):
    """Holds its table beside its weights, and counts what it has seen beside it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width, self.first, self.last = width, nn.Linear(6, width), nn.Linear(width, 3)
        self.register_buffer("table", sines(TOKENS, width), persistent=False)
        self.register_buffer("seen", torch.ones(width).double())

    def grow(self, tokens: int) -> None:
        self.table = sines(tokens, self.width)

    def note(self) -> None:
        self.seen = self.seen * 2

    def forward(self, x: Tensor) -> Tensor:
        return self.last((self.first(x) + self.table[: x.size(1)]).relu() * self.seen)


def prunes(width: int, uses: str, capture: str) -> tuple[Embeds, nn.Module]:
    torch.manual_seed(width)
    model = randomise(Embeds(width, uses).double().eval())
    x = torch.randn(2, TOKENS, 6).double()
    return model, fxprune.prune(model, 0.5, example_inputs=x, form="module", capture=capture)


@pytest.mark.parametrize("width", [24, 48, 96])
def test_a_grown_table_has_the_channels_that_are_kept(width: int, capture: str) -> None:
    model, pruned = prunes(width, "", capture)
    assert type(pruned) is Embeds and record_of(pruned).own.is_whole
    assert pruned.first.out_features == width // 2 and pruned.positions.width == width
    x = torch.randn(3, 2 * TOKENS + 1, 6).double()
    model.positions.grow(x.size(1))
    longer = fxprune.apply(model, fxprune.plan_of(pruned), example_inputs=x, capture=capture)
    for _ in range(2):  # the first call grows it
        torch.testing.assert_close(pruned(x), longer(x))


@pytest.mark.parametrize("uses", ["view", "scale"])
@pytest.mark.parametrize("width", [24, 96])
def test_what_forward_would_grow_at_the_pruned_width_is_refused(width: int, uses: str, capture: str) -> None:
    model, pruned = prunes(width, uses, capture)
    assert type(pruned) is Embeds and record_of(pruned).own.is_whole
    assert fxprune.verify(model, pruned) < 1e-8
    x = torch.randn(3, TOKENS - 1, 6).double()
    assert pruned(x).shape == (3, TOKENS - 1, 3)
    assert pruned.positions.width != width
    with pytest.raises(UnsupportedModuleError, match="at the pruned width"):
        pruned(torch.randn(3, 2 * TOKENS, 6).double())


@pytest.mark.parametrize("width", [72, 96])
@pytest.mark.parametrize("tokens", [TOKENS, 2 * TOKENS])
def test_a_table_beside_weights_is_refused_at_the_pruned_width(width: int, tokens: int, capture: str) -> None:
    torch.manual_seed(tokens)
    model, x = randomise(Whole(width).double().eval()), torch.randn(2, TOKENS, 6).double()
    pruned = fxprune.prune(model, 0.5, example_inputs=x, form="module", capture=capture)
    wanted = pruned(x)
    with pytest.raises(UnsupportedModuleError, match="at the pruned width"):
        pruned.grow(tokens)
    pruned.table = pruned.table.clone()
    pruned.note()  # a state of weights, of the width that they have
    assert pruned.seen.shape == (width // 2,) and not torch.equal(pruned(x), wanted)
